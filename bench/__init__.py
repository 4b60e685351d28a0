"""A side-by-side measurement of ``llmserve serve`` and ``vllm serve``.

``make bench`` or ``python -m bench`` in the root of the repository. What is measured, how,
and what it says: ``docs/performance.md``.

    cases      what is asked of a server
    servers    the servers: start, CPU time, stop
    client     the load: many connections, almost no work for each piece of a stream
    replies    what came back, read after the clock has stopped
    runner     rounds, interleaved, and the check that both servers say the same
    stats      medians, ratios, /proc
    report     the table and the JSON file
"""
