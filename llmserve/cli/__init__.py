"""The command line: parse, call, print. One file for each command.

Nothing heavy is imported by the modules that declare commands; what a command needs is
imported in its body, so that ``--help`` answers at once.
"""
