"""The runner: a run belongs to a worker process and to the ledger, never to a terminal.

    launch.start_run    checks the recipe, enters the run, starts its worker in a session of its own
    worker              goes through the steps, skips finished work, starts a process for each of the others
    forkserver          holds the imported libraries and forks those processes
    process             does one step under a lease, heartbeats, publishes, records
    events              what all of them tell whoever watches

Kill any of them at any moment: nothing half-made is visible, nothing is left running, and `launch.resume_run` goes on.
"""
