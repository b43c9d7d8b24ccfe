"""psql."""

import signal
import subprocess
import time

from steps import *


def psql(sql, **words):
    """Runs a script; what it printed, what it complained of, and its exit code."""
    env = {**os.environ, **words}
    command = ["psql", "-XAtq", "-v", "VERBOSITY=verbose"]
    return subprocess.run(command, input=sql, env=env, capture_output=True, text=True)


def says(sql, expected):
    done = psql(sql)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, expected, ""), done


def wrong_password():
    done = psql("SELECT 1", PGPASSWORD="wrong")
    assert done.returncode == 2 and "password authentication failed" in done.stderr, done


def sql_prepared():
    says("PREPARE p (int) AS SELECT $1 * 2;" + "EXECUTE p (21);" * 10 + "DEALLOCATE p;", ["42"] * 10)


def many():
    script = "".join(f"PREPARE p{n} AS SELECT {n};" for n in range(STATEMENTS))
    script += "".join(f"EXECUTE p{n};" for n in range(STATEMENTS))
    env = dict(os.environ)
    clients = [
        subprocess.Popen(["psql", "-XAtq"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for one in clients:
        one.stdin.write(script)
        one.stdin.close()
    for one in clients:
        assert one.stdout.read().split() == [str(n) for n in range(STATEMENTS)]
        assert one.wait() == 0


def transaction():
    insert = f"INSERT INTO driver_rows VALUES ('{WHO}', %d);"
    if MODE == "statement":
        return must_be_refused(psql("BEGIN; SELECT 1; COMMIT;").stderr)
    script = "BEGIN;" + insert % 1 + "COMMIT; BEGIN;" + insert % 2 + "ROLLBACK;"
    script += "BEGIN;" + insert % 3 + "SAVEPOINT a;" + insert % 4 + "SELECT 1/0; ROLLBACK TO a; COMMIT;"
    done = psql(script + f"SELECT n FROM driver_rows WHERE who = '{WHO}' ORDER BY n;")
    assert done.stdout.split() == ["1", "3"] and "22012" in done.stderr, done


def error():
    done = psql("SELECT 1/0; SELECT 1;")
    assert done.returncode == 0 and "22012" in done.stderr and done.stdout.split() == ["1"], done


def copy():
    rows = "".join(f"{WHO}\t{n}\n" for n in range(1000, 2000))
    done = psql(f"COPY driver_rows FROM STDIN;\n{rows}\\.\n")
    assert (done.returncode, done.stderr) == (0, ""), done
    done = psql(f"\\copy (SELECT n FROM driver_rows WHERE who = '{WHO}' AND n >= 1000) TO STDOUT\n")
    assert len(done.stdout.split()) == 1000, done
    done = psql("COPY driver_rows FROM STDIN;\nno number\tx\n\\.\nSELECT 1;\n")
    assert "22P02" in done.stderr and done.stdout.split() == ["1"], done


def large():
    text = "x" * MEGABYTE
    says(f"SELECT '{text}';", [text])
    says(f"SELECT repeat('y', {MEGABYTE});", ["y" * MEGABYTE])


def cancel():
    command = ["psql", "-XAtq", "-v", "VERBOSITY=verbose", "-c", "SELECT pg_sleep(20)"]
    one = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while one.poll() is None:
        time.sleep(0.5)
        one.send_signal(signal.SIGINT)
        try:
            one.wait(2)
        except subprocess.TimeoutExpired:
            pass
    assert "57014" in (said := one.stderr.read()), said


version(subprocess.run(["psql", "--version"], capture_output=True, text=True).stdout.split()[2])
step("connect", says, "SELECT current_user;", [USER])
step("wrong password", wrong_password)
step("simple query", says, "SELECT 1; SELECT 2;", ["1", "2"])
none("parameters")
step("prepared", sql_prepared)
step("many prepared", many)
step("pipeline", says, "SELECT 1\\; SELECT 2\\; SELECT 3;", ["1", "2", "3"])
step("transaction", transaction)
step("error", error)
step("copy", copy)
step("large", large)
step("cancel", cancel)
step("reconnect", says, "SELECT 1;\n\\connect\nSELECT 2;", ["1", "2"])
