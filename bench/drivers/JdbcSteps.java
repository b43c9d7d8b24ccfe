// pgjdbc.
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.*;
import java.util.*;
import java.util.concurrent.*;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

public class JdbcSteps {
    static final String MODE = System.getenv("DRIVERS_MODE");
    static final String WHO = System.getenv("DRIVERS_WHO");
    static final int STEP_SECONDS = 30;
    static final int STATEMENTS = 300;
    static final int MEGABYTE = 1 << 20;
    static final ExecutorService THREADS = Executors.newCachedThreadPool(run -> {
        Thread thread = new Thread(run);
        thread.setDaemon(true);
        return thread;
    });

    interface Step {
        void run() throws Exception;
    }

    static Connection connect(String... words) throws SQLException {
        Properties given = new Properties();
        given.setProperty("user", System.getenv("PGUSER"));
        given.setProperty("password", System.getenv("PGPASSWORD"));
        given.setProperty("sslmode", System.getenv("PGSSLMODE"));
        for (int at = 0; at < words.length; at += 2) given.setProperty(words[at], words[at + 1]);
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        return DriverManager.getConnection(url, given);
    }

    static void same(Object found, Object expected) {
        if (!Objects.equals(found, expected)) throw new AssertionError(found + " is not " + expected);
    }

    static int ask(Connection db, String sql, int value) throws SQLException {
        try (PreparedStatement own = db.prepareStatement(sql)) {
            own.setInt(1, value);
            ResultSet rows = own.executeQuery();
            rows.next();
            return rows.getInt(1);
        }
    }

    static String ask(Connection db, String sql) throws SQLException {
        try (Statement own = db.createStatement()) {
            ResultSet rows = own.executeQuery(sql);
            rows.next();
            return rows.getString(1);
        }
    }

    static void fails(String code, Step step) throws Exception {
        try {
            step.run();
        } catch (SQLException error) {
            if (!code.equals(error.getSQLState())) throw error;
            return;
        }
        throw new AssertionError("no error");
    }

    static void step(String name, Step step) {
        Future<?> run = THREADS.submit(() -> {
            step.run();
            return null;
        });
        try {
            run.get(STEP_SECONDS, TimeUnit.SECONDS);
            System.out.println("ok " + name);
        } catch (TimeoutException error) {
            System.out.println("fail " + name + ": not over after " + STEP_SECONDS + " s");
        } catch (Exception error) {
            Throwable why = error.getCause() == null ? error : error.getCause();
            System.out.println("fail " + name + ": " + why.toString().replaceAll("\\s+", " "));
        }
    }

    static void prepared() throws Exception {
        // From the first, and from the fifth on.
        for (String threshold : new String[] {"1", "5"}) {
            try (Connection db = connect("prepareThreshold", threshold);
                    PreparedStatement own = db.prepareStatement("SELECT ? * 2")) {
                for (int n = 0; n < 10; n++) {
                    own.setInt(1, n);
                    ResultSet rows = own.executeQuery();
                    rows.next();
                    same(rows.getInt(1), n * 2);
                }
            }
        }
    }

    static void many() throws Exception {
        List<Future<?>> all = new ArrayList<>();
        for (int client = 0; client < 3; client++) {
            int at = client;
            all.add(THREADS.submit(() -> {
                try (Connection db = connect("prepareThreshold", "1")) {
                    for (int round = 0; round < 2; round++) {
                        for (int n = 0; n < STATEMENTS; n++) same(ask(db, "SELECT ? + " + n, at), at + n);
                    }
                }
                return null;
            }));
        }
        for (Future<?> one : all) one.get();
    }

    /** Connections that are open and do nothing are more than there are servers. */
    static void open() throws Exception {
        List<Connection> all = new ArrayList<>();
        for (int n = 0; n < 6; n++) all.add(connect());
        for (Connection db : all) same(ask(db, "SELECT 1"), "1");
        for (Connection db : all) db.close();
    }

    static void batch() throws Exception {
        for (String rewrite : new String[] {"false", "true"}) {
            try (Connection db = connect("prepareThreshold", "1", "reWriteBatchedInserts", rewrite);
                    PreparedStatement own = db.prepareStatement("INSERT INTO driver_rows VALUES (?, ?)")) {
                for (int n = 0; n < 500; n++) {
                    own.setString(1, WHO + rewrite);
                    own.setInt(2, n);
                    own.addBatch();
                }
                same(own.executeBatch().length, 500);
                same(ask(db, "SELECT count(*) FROM driver_rows WHERE who = '" + WHO + rewrite + "'"), "500");
            }
        }
        try (Connection db = connect(); Statement own = db.createStatement()) {
            own.addBatch("SELECT 1/0");
            own.addBatch("DELETE FROM driver_rows WHERE who = 'nobody'");
            fails("22012", own::executeBatch);
            same(ask(db, "SELECT 1"), "1");
        }
    }

    static void transaction() throws Exception {
        try (Connection db = connect("prepareThreshold", "1")) {
            db.setAutoCommit(false);
            if (MODE.equals("statement")) {
                try {
                    ask(db, "SELECT 1");
                } catch (SQLException error) {
                    if (error.getMessage().contains("transaction block")) return;
                    throw error;
                }
                throw new AssertionError("a transaction block was let in");
            }
            try (PreparedStatement own = db.prepareStatement("INSERT INTO driver_rows VALUES ('" + WHO + "', ?)")) {
                own.setInt(1, 1);
                own.executeUpdate();
                db.commit();
                own.setInt(1, 2);
                own.executeUpdate();
                db.rollback();
                own.setInt(1, 3);
                own.executeUpdate();
                Savepoint a = db.setSavepoint();
                own.setInt(1, 4);
                own.executeUpdate();
                fails("22012", () -> ask(db, "SELECT 1/0"));
                db.rollback(a);
                db.commit();
            }
            same(ask(db, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM driver_rows WHERE who = '" + WHO + "'"), "1 3");
            // Rows by pieces, from a portal of its own.
            try (Statement own = db.createStatement()) {
                own.setFetchSize(50);
                ResultSet rows = own.executeQuery("SELECT generate_series(1, 200)");
                int count = 0;
                while (rows.next()) count++;
                same(count, 200);
            }
            db.commit();
        }
    }

    static void error() throws Exception {
        try (Connection db = connect("prepareThreshold", "1")) {
            for (int n = 0; n < 2; n++) {
                fails("22012", () -> ask(db, "SELECT ? / 0", 1));
                same(ask(db, "SELECT ?", 1), 1);
            }
        }
    }

    static void copy() throws Exception {
        try (Connection db = connect()) {
            CopyManager copies = db.unwrap(PGConnection.class).getCopyAPI();
            StringBuilder rows = new StringBuilder();
            for (int n = 1000; n < 2000; n++) rows.append(WHO).append('\t').append(n).append('\n');
            same(copies.copyIn("COPY driver_rows FROM STDIN", new StringReader(rows.toString())), 1000L);
            StringWriter out = new StringWriter();
            String all = "COPY (SELECT n FROM driver_rows WHERE who = '" + WHO + "' AND n >= 1000) TO STDOUT";
            same(copies.copyOut(all, out), 1000L);
            fails("22P02", () -> copies.copyIn("COPY driver_rows FROM STDIN", new StringReader("no number\tx\n")));
            same(ask(db, "SELECT 1"), "1");
        }
    }

    static void large() throws Exception {
        String text = "x".repeat(MEGABYTE);
        try (Connection db = connect("prepareThreshold", "1"); PreparedStatement own = db.prepareStatement("SELECT ?::text")) {
            own.setString(1, text);
            ResultSet rows = own.executeQuery();
            rows.next();
            same(rows.getString(1).equals(text), true);
            same(ask(db, "SELECT repeat('y', " + MEGABYTE + ")").length(), MEGABYTE);
        }
    }

    static void cancel() throws Exception {
        try (Connection db = connect(); Statement own = db.createStatement()) {
            THREADS.submit(() -> {
                Thread.sleep(500);
                own.cancel();
                return null;
            });
            fails("57014", () -> own.execute("SELECT pg_sleep(20)"));
            same(ask(db, "SELECT 1"), "1");
            // By its own clock.
            own.setQueryTimeout(1);
            fails("57014", () -> own.execute("SELECT pg_sleep(20)"));
            same(ask(db, "SELECT 1"), "1");
        }
    }

    static void reconnect() throws Exception {
        for (int n = 0; n < 10; n++) {
            try (Connection db = connect()) {
                same(ask(db, "SELECT ?", n), n);
            }
        }
    }

    public static void main(String[] words) {
        System.out.println("version " + org.postgresql.util.DriverInfo.DRIVER_VERSION + ", Java " + System.getProperty("java.version"));
        step("connect", JdbcSteps::open);
        step("wrong password", () -> fails("28P01", () -> connect("password", "wrong")));
        step("simple query", () -> {
            try (Connection db = connect("preferQueryMode", "simple")) {
                same(ask(db, "SELECT 1"), "1");
            }
        });
        step("parameters", () -> {
            try (Connection db = connect()) {
                same(ask(db, "SELECT ? + 1", 41), 42);
            }
        });
        step("prepared", JdbcSteps::prepared);
        step("many prepared", JdbcSteps::many);
        step("pipeline", JdbcSteps::batch);
        step("transaction", JdbcSteps::transaction);
        step("error", JdbcSteps::error);
        step("copy", JdbcSteps::copy);
        step("large", JdbcSteps::large);
        step("cancel", JdbcSteps::cancel);
        step("reconnect", JdbcSteps::reconnect);
        System.exit(0);
    }
}
