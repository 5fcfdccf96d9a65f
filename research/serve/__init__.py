"""Runs, and folders of transformers, as a service over HTTP.

limits.py      every limit of the service, with its default
errors.py      the errors that a client gets, with their codes
shapes.py      the batch shapes that are compiled, and which one a set of inputs needs
operations.py  what a model can be asked for: predictions, tokens for masks, embeddings
masks.py       the masks in texts
model.py       a checkpoint or a folder, compiled for these shapes
observer.py    what the service reports about its work, such as to metrics
queue.py       inputs that wait for a device: bounded, fair between clients
engine.py      the threads that take inputs from the queue and run the model
cache.py       answers by encoded input: bounded
inputs.py      what is checked of raw inputs before they are encoded
splits.py      one name for several models, which share its requests
service.py     from raw inputs to answers: encoding, cache, queue
http.py        what the protocols share
plain.py       the service's own JSON
fill.py        the same for masks
tensors.py     tensors of the Open Inference Protocol, in JSON and binary
oip.py         the Open Inference Protocol, version 2
tei_schema.py  the requests of text-embeddings-inference
tei.py         text-embeddings-inference's interface, and OpenAI's embeddings
app.py         the paths of all protocols
guard.py       what stands before them: keys (keys.py), rates (rates.py), slow and large bodies, request ids
metrics.py     what Prometheus reads at /metrics
logs.py        one line for each request, never with its inputs or key
server.py      starts all of it, and stops it after what was asked is answered
"""
