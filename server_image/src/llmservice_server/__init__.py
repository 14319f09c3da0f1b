"""Model server: a FastAPI application in front of vLLM, with probes, drain and metrics.

__main__     entry point: handles signals before any other import
command_line --help, settings, exit code
settings     settings from environment variables, which the operator sets
serve        runs one server: listens, loads, serves, drains, exits
lifecycle    phases of the server and the bodies of its probes
listener     HTTP listeners, which leave signals to the server
connection   limits of a connection outside its requests
request_ids  request ids in headers and logs
management   the small application on the management port: probes and metrics
management_thread  the thread and the event loop of the management port
app, gate    the application on the API port and the admission in front of it
exchange     limits of a request, and the correct end of its response
body_shape   limits on the number of values in a body, before it is parsed
queue_place  the places of one request in the engine's queue
structures   limits on the structure of an answer
keys         API keys from a mounted Secret
cache_salt   separate entries in the prefix cache for each API key
cors         access from a browser on pages of other sites
routes       list of all routes that serve clients
route_page   docs/routes.md, generated from that list
documentation  the OpenAPI document and the page at /docs
generate     POST /generate
lookups      small routes that report the served models and the load
engine       wraps vLLM in the few operations that the server needs
context_limit  lowers the requested length of an answer to the room in the context
engine_usage counters of the engine's work for the autoscaler
key_usage    requests and tokens of each API key
memory       returns free memory of the allocator to the system
watch        detects that the engine has died or hangs
gpu          GPU metrics from NVML
loading      turns the command line into a running engine, phase by phase
cpu_platform small defaults for a CPU-only engine
model_infos  vLLM's information about model classes, stored in the image
download     downloads weights and reports the progress
trust        trusts the certificate authorities of a mounted bundle
filling      fills the model cache; servers that share it take turns
shared_cache gives one server at a time the right to fill a shared cache
adapters     downloads, loads, serves and unloads LoRA adapters while the server runs
adapter_list, adapter_files, engine_adapters  the list, files and engine calls of adapters
smoke_test   sends the server a test request before it is ready
failures     classifies failures by reason
errors       error responses in OpenAI's envelope
streaming    server-sent events
stream_chunks  the JSON of a stream's chunks, without vLLM's models
stored_responses  the header with the id of a stored response
stream_errors  the error event of each route's streams
metrics      metric families of the server itself
logs         structured logs without prompts and answers
drain        finishes the requests in progress before the exit
compat       the only module that imports vLLM, with a list of the symbols
"""
