"""From load to replicas: values in, values out, no clock and no I/O.

signals          what a model server reports, and the difference of two reports
step_model       seconds of an engine step, learned online
lengths          how long prompts and answers are
capacity         the request rate at which one replica still meets its SLO
demand           a service's load in percent of one replica
capacity_factor  correction of the capacity from the SLO misses that really happened
cold_start       how long a new replica takes to help
scale_down       how long to keep a replica that is not needed now
assess           one scrape of a service: everything above in order
hpa              the arithmetic of the HorizontalPodAutoscaler
"""
