"""pgbench: its three ways to ask, and pipelines."""

import pathlib
import subprocess
import tempfile

from steps import *

CLIENTS = 6
FOLDER = pathlib.Path(tempfile.mkdtemp())


def pgbench(script, *words, times=20, **env):
    file = FOLDER / "script.sql"
    file.write_text(script)
    # A thread each: it prepares a statement by waiting for it, while others of the same thread may have a transaction
    # open, and with that the server that it waits for.
    command = ["pgbench", "-n", "-c", str(CLIENTS), "-j", str(CLIENTS), "-t", str(times), "-f", str(file), *words]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)


def runs(script, *words, times=20):
    done = pgbench(script, *words, times=times)
    expected = f"{CLIENTS * times}/{CLIENTS * times}"
    assert done.returncode == 0 and expected in done.stdout and "error" not in done.stderr, done.stderr or done.stdout


def wrong_password():
    done = pgbench("SELECT 1;\n", PGPASSWORD="wrong")
    assert done.returncode != 0 and "password authentication failed" in done.stderr, done


def many():
    # Each line is a statement of its own.
    runs("\\set n random(1, 9)\n" + "".join(f"SELECT :n + {n};\n" for n in range(STATEMENTS)), "-M", "prepared", times=2)


def pipeline():
    script = "\\startpipeline\nSELECT 1;\nSELECT :n;\nSELECT 3;\n\\endpipeline\n"
    for way in ("extended", "prepared"):
        runs("\\set n random(1, 9)\n" + script, "-M", way)


def transaction():
    insert = f"INSERT INTO driver_rows VALUES ('{WHO}', :client_id);\n"
    script = f"BEGIN;\n{insert}SAVEPOINT a;\n{insert}ROLLBACK TO a;\nCOMMIT;\n"
    for way in ("simple", "extended", "prepared"):
        if MODE == "statement":
            must_be_refused(pgbench(script, "-M", way).stderr)
        else:
            runs(script, "-M", way, times=5)
    if MODE != "statement":
        for way in ("extended", "prepared"):
            runs("\\startpipeline\n" + script + "\\endpipeline\n", "-M", way, times=5)


SELECT = "\\set n random(1, 9)\nSELECT :n;\n"
version(subprocess.run(["pgbench", "--version"], capture_output=True, text=True).stdout.split()[2])
step("connect", runs, SELECT)
step("wrong password", wrong_password)
step("simple query", runs, SELECT, "-M", "simple")
step("parameters", runs, SELECT, "-M", "extended")
step("prepared", runs, SELECT, "-M", "prepared")
step("many prepared", many)
step("pipeline", pipeline)
step("transaction", transaction)
none("error")
none("copy")
step("large", runs, f"SELECT repeat('y', {MEGABYTE});\n")
none("cancel")
step("reconnect", runs, SELECT, "-C")
