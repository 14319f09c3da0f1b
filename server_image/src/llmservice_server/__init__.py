"""Model server: a FastAPI application in front of vLLM, with probes, drain and metrics.

__main__     entry point: handles signals before any other import
command_line --help, settings, exit code
settings     settings from environment variables, which the operator sets
serve        the life of one server: listen, load, serve, drain, exit
lifecycle    phases of the server and the bodies of its probes
listener     HTTP listeners without signal handlers of their own
connection   limits of a connection outside its requests
request_ids  request ids in headers and logs
management   the small application on the management port: probes and metrics
management_thread  the thread and the event loop of that port
app, gate    the application on the API port and the admission in front of it
exchange     a request: its limits and the correct end of its response
body_shape   limits on the number of values in a body, before it is parsed
queue_place  the places of one request in the engine's queue
structures   limits on the structure of an answer
keys         API keys from a mounted Secret
routes       the paths that belong to serving
documentation  the OpenAPI document and the page at /docs
generate     POST /generate
engine       vLLM behind the few operations that the server needs
context_limit  refuses requests that exceed the context
engine_usage counters of the engine's work for the autoscaler
memory       returns free memory of the allocator to the system
watch        detects that the engine has died or hangs
gpu          GPU metrics from NVML
loading      from the command line to a warm engine, phase by phase
cpu_platform small defaults and settings of a CPU-only engine
model_infos  vLLM's information about model classes, stored in the image
download     downloads weights and reports the progress
failures     every way a load can fail, by reason
compat       the only module that imports vLLM, with the symbols it takes
stream_errors  error events of streams, by route
errors, streaming, metrics, logs, drain   as their names say
"""
