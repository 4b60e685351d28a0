"""A side-by-side measurement of ``llmserve serve`` and ``vllm serve``.

``make bench`` or ``python -m bench`` in the root of the repository. What is measured, how,
and what it says: ``docs/performance.md``.

    goals      the table of goals, and whether they are met
    parts      what a part of the benchmark is

    streams    a part: streams and short requests, tiny model and demo model
    added      a part: time to first token, beside the bare engine (bare_engine)
    gaps       a part: what a large request does to other streams
    starts     a part: from the start of the process to the first token
    idle       a part: many streams held open (scripted)

    models     the models
    programs   a program under measurement: CPU time, memory, end
    servers    the servers, and the arguments that both get
    cases      what is asked of a server
    client     the load: many connections, almost no work for each piece of a stream
    replies    what came back, read after the clock has stopped
    runner     rounds, interleaved, and the check that both servers say the same
    values     measured values, by measure, server and round
    stats      medians, ratios, /proc

    report     the tables on the terminal, and the JSON file
    page       docs/performance.md
    plots      its pictures

``bench.fairness``, ``bench.policies``, ``bench.modelfile`` and ``bench.modelfile_server`` are
commands of their own.
"""
