"""The server: one model asked over HTTP, and a page to ask it from. Needs the extra `machxc[serve]`.

::

    settings.py    what may be set: limits, queue, deadline
    engine.py      a loaded model, ready to answer batches of queries
    explain.py     why a label was given: what the query's n-grams and the buckets say
    batching.py    a bounded queue, and the threads that score what is in it
    service.py     engine, queue and telemetry together: search, readiness, reload
    schemas.py     what comes in and goes out, as OpenAPI tells it
    failures.py    every error, as JSON
    guard.py       what every request passes: key, size, count
    app.py         the routes
    lifecycle.py   sockets and signals: start, reload, drain
    page/          the search page and that of the API: plain files
"""
