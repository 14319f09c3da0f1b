"""Computes the replicas that a load needs. It consists of pure functions, without clock or I/O.

sums             arithmetic over the fields of a dataclass
signals          the report of a model server, and the difference of two reports
step_model       seconds of an engine step, learned online
hardware         data sheets of accelerators, the starting point of learning
traffic          the mean request: lengths, cache hits, KV tokens held
lengths          a distribution of token counts
tracking         the last report of each replica, and estimates for silent replicas
ledger           arrivals and work of the last minutes
conditions       the requests and the limits of an engine, and its SLO
misses           the shares of requests that miss the SLO at one request rate
capacity         the request rate at which one replica still meets its SLO
capacity_factor  correction of the capacity from measured SLO misses
cold_start       time from the creation of a replica until it is Ready
load             level, bursts, trend and variation of the load of the last minutes
demand           the load of a service in percent of one replica
forecast         ramps of the load that usually come at the present time of day
scale_down       the window whose highest demand limits scale-down
latency          percentiles of TTFT and ITL
assess           the whole path from one scrape of a service to its demand
calibration      the learned state in a form that is small enough for a status
hpa              the arithmetic of the HorizontalPodAutoscaler
direct           the same arithmetic, for services without a HorizontalPodAutoscaler
deletion_cost    the order in which replicas are removed
recommend        the HPA behavior that suits a service
"""
