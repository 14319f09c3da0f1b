"""A real Kubernetes on one machine, without a container engine, inside network namespaces.

cli        the commands
lifecycle  up, down, status, clean: the story of a cluster
cluster    a cluster by name: its paths, and running something inside it
binaries   the Go programs, built once
images     the project's images, built and handed to the nodes
hub        the models and the test hub that serves them
"""
