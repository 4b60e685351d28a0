"""A load generator for OpenAI-compatible servers: what ``llmserve bench`` does.

It knows nothing of this server and can point at any. Definitions of the figures:
``docs/bench.md``.

    plan         what was asked for: targets, load, workload, objectives
    lengths      distributions of prompt and answer lengths
    arrivals     when requests are due: pure functions of a seed
    prompts      texts: made up, or from a ShareGPT file
    calibrate    how many tokens the server's tokenizer makes of a text
    target       one server: its address, and requests as bytes
    connection   HTTP/1.1 on asyncio, as cheap as Python allows
    events       a stream of events, read while it arrives
    exchange     one request from begin to end, failures told apart
    load         a closed or an open loop of requests
    selfwatch    what the load generator itself cost
    figures      latencies, rates, goodput: pure functions of what came back
    compare      medians over rounds, and ratios between two servers
    session      the whole run: calibration, warm-up, steps, rounds
    preflight    what comes before: model, calibration, warm-up
    results      what was measured
    tables       it as text, for the terminal and the report
    report_json  it as JSON
    report_html  it as one HTML file, with plots by svg
    seeds        random numbers that can be had again
"""
