"""What every driver's program in Python does the same way: its steps, a line each, with a limit of time each."""

import os
import signal
import sys
import traceback

HOST, PORT = os.environ["PGHOST"], int(os.environ["PGPORT"])
USER, DATABASE, PASSWORD = os.environ["PGUSER"], os.environ["PGDATABASE"], os.environ["PGPASSWORD"]
# direct, transaction, session or statement: where the program is connected.
MODE = os.environ["DRIVERS_MODE"]
# What it writes into the table driver_rows bears this.
WHO = os.environ["DRIVERS_WHO"]
STEP_SECONDS = 30
STATEMENTS = 300
MEGABYTE = 1 << 20


def version(text):
    print(f"version {text}", flush=True)


def none(name):
    """The driver has no such thing."""
    print(f"none {name}", flush=True)


def why(error):
    if isinstance(error, AssertionError) and not str(error):
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"line {place.lineno}: {place.line}"
    return f"{type(error).__name__} {error}".replace("\n", " ").strip()


def ok(name):
    print(f"ok {name}", flush=True)


def fail(name, error):
    print(f"fail {name}: {why(error)}", flush=True)


def _over(_signal, _frame):
    raise TimeoutError(f"not over after {STEP_SECONDS} s")


def step(name, run, *words):
    signal.signal(signal.SIGALRM, _over)
    signal.alarm(STEP_SECONDS)
    try:
        run(*words)
    except Exception as error:  # Whatever a driver raises is what is told.
        fail(name, error)
    else:
        ok(name)
    finally:
        signal.alarm(0)
        sys.stdout.flush()


def must_be_refused(error):
    """In statement mode a transaction block is refused in such words, as PgBouncer refuses it."""
    assert "transaction block" in str(error).lower(), str(error)
