"""From load to replicas: values in, values out, no clock and no I/O.

signals          what a model server reports, and the difference of two reports
step_model       seconds of an engine step, learned online
hardware         data sheets of accelerators, where learning starts
traffic          what requests look like: lengths, cache hits, KV held
lengths          a distribution of token counts
hearing          what each replica told last, and what is assumed of a silent one
ledger           what came in and was done in the last minutes
capacity         the request rate at which one replica still meets its SLO
capacity_factor  correction of the capacity from the SLO misses that really happened
cold_start       how long a new replica takes to help
demand           a service's load in percent of one replica
scale_down       how long to keep a replica that is not needed now
latency          percentiles of TTFT and ITL, for the reader
assess           one scrape of a service: everything above in order
checkpoint       what was learned, small enough for a status
hpa              the arithmetic of the HorizontalPodAutoscaler
direct           the same at its pace, where nothing else scales
deletion_cost    which replica is to go first
recommend        the HPA behavior that suits a service
"""
