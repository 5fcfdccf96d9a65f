"""Runs, and folders of transformers, as a service over HTTP.

limits.py      every limit of the service, with its default
errors.py      the errors that a client gets, with their codes
shapes.py      the batch shapes that are compiled, and which one a set of inputs needs
operations.py  what a model can be asked for: predictions, tokens for masks, embeddings
masks.py       the masks in texts
compute.py     what a model computes in: float32, bfloat16 or int8, by measurement
encoding.py    from raw inputs to what a model reads
model.py       a checkpoint or a folder, compiled for these shapes
observer.py    what the service reports about its work, such as to metrics
queue.py       inputs that wait for a device: bounded, fair between clients
engine.py      the threads that take inputs from the queue and run the model
cache.py       answers by encoded input: bounded
inputs.py      what is checked of raw inputs before they are encoded
encoders.py    the same for requests: in threads, and kept for texts
admission.py   which requests are refused as there are too many
splits.py      one name for several models, which share its requests
service.py     from raw inputs to answers: encoding, cache, queue
http.py        what the protocols share
plain.py       the service's own JSON
fill.py        the same for masks
forms.py       what a form for a model's inputs has to know
gradients.py   integrated gradients: what each item of an input adds to a score
explainer.py   the same for a model, compiled when it is first asked for
explanations.py  the same as JSON: of words, pixels and features
page_files.py  the page for people at /, whose files are in page/
tensors.py     tensors of the Open Inference Protocol, in JSON and binary
oip.py         the Open Inference Protocol, version 2
tei_schema.py  the requests of text-embeddings-inference
tei.py         text-embeddings-inference's interface, and OpenAI's embeddings
ticket.py      a text that a request asks for
writer.py      a decoder: a thread that continues the texts of several requests at the same time
texts.py       the texts of a request, as they come
events.py      the same as server-sent events
openai_schema.py  the requests of OpenAI's interface of texts
openai.py      OpenAI's interface of texts
direct.py      a short way from a request to its endpoint
app.py         the paths of all protocols
guard.py       what stands before them: keys (keys.py), rates (rates.py), slow and large bodies, request ids
connection.py  limits on the heads of requests, and refusals of requests unread
metrics.py     what Prometheus reads at /metrics (text_metrics.py: of decoders; histogram.py)
tracing.py     spans of requests for OpenTelemetry
logs.py        one line for each request, never with its inputs or key
clients.py     clients in a process of their own, which measure the service
subject.py     a model with inputs and cores, to be measured
rehearsal.py   what a model takes in this service on this machine, measured under load
server.py      starts all of it, and stops it after what was asked is answered
ray_cluster.py  Ray's cluster and proxy
ray_engine.py  the same in replicas of Ray Serve
scrapes.py     the metrics of several replicas as one text
"""
