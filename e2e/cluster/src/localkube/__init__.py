"""Runs a real Kubernetes on one machine, without a container engine, inside network namespaces.

cli        the commands
lifecycle  up, down, status, clean
cluster    a cluster by name: its paths, and the commands that run inside it
binaries   the Go programs, built once
images     builds the project's images and loads them into the nodes
hub        the models and the test hub that serves them
"""
