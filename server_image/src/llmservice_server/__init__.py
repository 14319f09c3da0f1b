"""Model server: one FastAPI application in front of vLLM, with honest probes, drain and metrics.

__main__     entry point: heeds signals before anything else is imported
command_line --help, settings, exit code
settings     what the operator sets by environment variables
serve        the life of one server: listen, load, serve, drain, exit
lifecycle    the phase the server is in, and what the probes say about it
listener     HTTP listeners that leave signals to us
connection   what a client may do to a connection, before and beside its requests
request_ids  the id of a request, from its first header to its last line of log
management   the small application on the management port: probes and metrics
app, gate    the application on the API port and the admission in front of it
exchange     one request: its limits, and an honest end of its response
keys         API keys from a mounted Secret
routes       which paths belong to serving
documentation  the OpenAPI document and the page at /docs
generate     POST /generate
engine       vLLM behind the few operations we need
context_limit  no answer is cut short by the context without saying so
engine_usage counters of the engine's work for the autoscaler
memory       giving memory back that the allocator keeps
watch        noticing that the engine has died or hangs
gpu          what NVML says about the GPUs
loading      from the command line to a warm engine, phase by phase
cpu_platform small defaults and settings of a CPU-only engine
model_infos  what vLLM finds out about model classes, kept in the image
download     fetching weights with progress
failures     every way a load can fail, by reason
compat       the only module that names vLLM symbols
stream_errors  how an error of a stream is told on each route
errors, streaming, metrics, logs, drain   what their names say
"""
