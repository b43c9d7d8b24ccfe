//! Which variable sets which key. Names are Patroni's where Patroni has one; the others follow its rule
//! (`SECTION_KEY`), so that every section that is acted on can be set without a file.

/// How the text of a variable is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it stands.
    Text,
    /// Texts with commas between, or a YAML list.
    Texts,
    /// One text in a line, or a YAML list: lines may hold commas.
    Lines,
    /// A YAML mapping; its braces may be left out.
    Mapping,
}

/// Name behind the prefix, the key, and how the text is read.
pub type Variable = (&'static str, &'static str, Form);

/// Every variable but those of a role's connection and of another store.
pub const VARIABLES: &[Variable] = &[
    ("NAME", "name", Form::Text),
    ("SCOPE", "scope", Form::Text),
    ("NAMESPACE", "namespace", Form::Text),
    ("THREAD_POOL_SIZE", "thread_pool_size", Form::Text),
    ("THREAD_STACK_SIZE", "thread_stack_size", Form::Text),
    ("LOG_TYPE", "log.type", Form::Text),
    ("LOG_LEVEL", "log.level", Form::Text),
    ("LOG_TRACEBACK_LEVEL", "log.traceback_level", Form::Text),
    ("LOG_FORMAT", "log.format", Form::Texts),
    ("LOG_DATEFORMAT", "log.dateformat", Form::Text),
    ("LOG_STATIC_FIELDS", "log.static_fields", Form::Mapping),
    ("LOG_MAX_QUEUE_SIZE", "log.max_queue_size", Form::Text),
    ("LOG_DIR", "log.dir", Form::Text),
    ("LOG_MODE", "log.mode", Form::Text),
    ("LOG_FILE_NUM", "log.file_num", Form::Text),
    ("LOG_FILE_SIZE", "log.file_size", Form::Text),
    ("LOG_LOGGERS", "log.loggers", Form::Mapping),
    (
        "LOG_DEDUPLICATE_HEARTBEAT_LOGS",
        "log.deduplicate_heartbeat_logs",
        Form::Text,
    ),
    // Patroni's names of before 1.6.
    ("LOGLEVEL", "log.level", Form::Text),
    ("LOGFORMAT", "log.format", Form::Texts),
    ("LOG_DATEFMT", "log.dateformat", Form::Text),
    ("RESTAPI_LISTEN", "restapi.listen", Form::Text),
    (
        "RESTAPI_CONNECT_ADDRESS",
        "restapi.connect_address",
        Form::Text,
    ),
    ("RESTAPI_CERTFILE", "restapi.certfile", Form::Text),
    ("RESTAPI_KEYFILE", "restapi.keyfile", Form::Text),
    (
        "RESTAPI_KEYFILE_PASSWORD",
        "restapi.keyfile_password",
        Form::Text,
    ),
    ("RESTAPI_CAFILE", "restapi.cafile", Form::Text),
    ("RESTAPI_CIPHERS", "restapi.ciphers", Form::Text),
    ("RESTAPI_VERIFY_CLIENT", "restapi.verify_client", Form::Text),
    ("RESTAPI_ALLOWLIST", "restapi.allowlist", Form::Texts),
    (
        "RESTAPI_ALLOWLIST_INCLUDE_MEMBERS",
        "restapi.allowlist_include_members",
        Form::Text,
    ),
    (
        "RESTAPI_HTTP_EXTRA_HEADERS",
        "restapi.http_extra_headers",
        Form::Mapping,
    ),
    (
        "RESTAPI_HTTPS_EXTRA_HEADERS",
        "restapi.https_extra_headers",
        Form::Mapping,
    ),
    (
        "RESTAPI_REQUEST_QUEUE_SIZE",
        "restapi.request_queue_size",
        Form::Text,
    ),
    (
        "RESTAPI_THREAD_POOL_SIZE",
        "restapi.thread_pool_size",
        Form::Text,
    ),
    ("RESTAPI_SERVER_TOKENS", "restapi.server_tokens", Form::Text),
    (
        "RESTAPI_USERNAME",
        "restapi.authentication.username",
        Form::Text,
    ),
    (
        "RESTAPI_PASSWORD",
        "restapi.authentication.password",
        Form::Text,
    ),
    ("CTL_INSECURE", "ctl.insecure", Form::Text),
    ("CTL_CACERT", "ctl.cacert", Form::Text),
    ("CTL_CERTFILE", "ctl.certfile", Form::Text),
    ("CTL_KEYFILE", "ctl.keyfile", Form::Text),
    ("CTL_KEYFILE_PASSWORD", "ctl.keyfile_password", Form::Text),
    ("CTL_USERNAME", "ctl.authentication.username", Form::Text),
    ("CTL_PASSWORD", "ctl.authentication.password", Form::Text),
    ("ETCD3_HOST", "etcd3.host", Form::Text),
    ("ETCD3_HOSTS", "etcd3.hosts", Form::Texts),
    ("ETCD3_URL", "etcd3.url", Form::Text),
    ("ETCD3_PROTOCOL", "etcd3.protocol", Form::Text),
    ("ETCD3_USERNAME", "etcd3.username", Form::Text),
    ("ETCD3_PASSWORD", "etcd3.password", Form::Text),
    ("ETCD3_CACERT", "etcd3.cacert", Form::Text),
    ("ETCD3_CERT", "etcd3.cert", Form::Text),
    ("ETCD3_KEY", "etcd3.key", Form::Text),
    ("ETCD3_PROXY", "etcd3.proxy", Form::Text),
    ("ETCD3_USE_PROXIES", "etcd3.use_proxies", Form::Text),
    ("ETCD3_SRV", "etcd3.srv", Form::Text),
    ("ETCD3_SRV_SUFFIX", "etcd3.srv_suffix", Form::Text),
    ("POSTGRESQL_LISTEN", "postgresql.listen", Form::Text),
    (
        "POSTGRESQL_CONNECT_ADDRESS",
        "postgresql.connect_address",
        Form::Text,
    ),
    (
        "POSTGRESQL_PROXY_ADDRESS",
        "postgresql.proxy_address",
        Form::Text,
    ),
    ("POSTGRESQL_DATA_DIR", "postgresql.data_dir", Form::Text),
    ("POSTGRESQL_CONFIG_DIR", "postgresql.config_dir", Form::Text),
    ("POSTGRESQL_BIN_DIR", "postgresql.bin_dir", Form::Text),
    (
        "POSTGRESQL_BIN_PG_CTL",
        "postgresql.bin_name.pg_ctl",
        Form::Text,
    ),
    (
        "POSTGRESQL_BIN_INITDB",
        "postgresql.bin_name.initdb",
        Form::Text,
    ),
    (
        "POSTGRESQL_BIN_PG_CONTROLDATA",
        "postgresql.bin_name.pg_controldata",
        Form::Text,
    ),
    (
        "POSTGRESQL_BIN_PG_BASEBACKUP",
        "postgresql.bin_name.pg_basebackup",
        Form::Text,
    ),
    (
        "POSTGRESQL_BIN_POSTGRES",
        "postgresql.bin_name.postgres",
        Form::Text,
    ),
    (
        "POSTGRESQL_BIN_PG_ISREADY",
        "postgresql.bin_name.pg_isready",
        Form::Text,
    ),
    (
        "POSTGRESQL_BIN_PG_REWIND",
        "postgresql.bin_name.pg_rewind",
        Form::Text,
    ),
    ("POSTGRESQL_PGPASS", "postgresql.pgpass", Form::Text),
    // From here on only Trunkline has a variable; the keys are Patroni's.
    (
        "POSTGRESQL_BIN_PSQL",
        "postgresql.bin_name.psql",
        Form::Text,
    ),
    (
        "POSTGRESQL_BIN_PG_WALDUMP",
        "postgresql.bin_name.pg_waldump",
        Form::Text,
    ),
    (
        "POSTGRESQL_PARAMETERS",
        "postgresql.parameters",
        Form::Mapping,
    ),
    ("POSTGRESQL_PG_HBA", "postgresql.pg_hba", Form::Lines),
    ("POSTGRESQL_PG_IDENT", "postgresql.pg_ident", Form::Lines),
    (
        "POSTGRESQL_RECOVERY_CONF",
        "postgresql.recovery_conf",
        Form::Mapping,
    ),
    (
        "POSTGRESQL_CUSTOM_CONF",
        "postgresql.custom_conf",
        Form::Text,
    ),
    ("POSTGRESQL_DATABASE", "postgresql.database", Form::Text),
    ("POSTGRESQL_KRBSRVNAME", "postgresql.krbsrvname", Form::Text),
    (
        "POSTGRESQL_USE_UNIX_SOCKET",
        "postgresql.use_unix_socket",
        Form::Text,
    ),
    (
        "POSTGRESQL_USE_UNIX_SOCKET_REPL",
        "postgresql.use_unix_socket_repl",
        Form::Text,
    ),
    (
        "POSTGRESQL_USE_PG_REWIND",
        "postgresql.use_pg_rewind",
        Form::Text,
    ),
    (
        "POSTGRESQL_PG_CTL_TIMEOUT",
        "postgresql.pg_ctl_timeout",
        Form::Text,
    ),
    (
        "POSTGRESQL_REMOVE_DATA_DIRECTORY_ON_REWIND_FAILURE",
        "postgresql.remove_data_directory_on_rewind_failure",
        Form::Text,
    ),
    (
        "POSTGRESQL_REMOVE_DATA_DIRECTORY_ON_DIVERGED_TIMELINES",
        "postgresql.remove_data_directory_on_diverged_timelines",
        Form::Text,
    ),
    (
        "POSTGRESQL_CALLBACKS",
        "postgresql.callbacks",
        Form::Mapping,
    ),
    (
        "POSTGRESQL_PRE_PROMOTE",
        "postgresql.pre_promote",
        Form::Text,
    ),
    (
        "POSTGRESQL_BEFORE_STOP",
        "postgresql.before_stop",
        Form::Text,
    ),
    (
        "POSTGRESQL_CREATE_REPLICA_METHODS",
        "postgresql.create_replica_methods",
        Form::Texts,
    ),
    (
        "POSTGRESQL_BASEBACKUP",
        "postgresql.basebackup",
        Form::Mapping,
    ),
    ("BOOTSTRAP_DCS", "bootstrap.dcs", Form::Mapping),
    ("BOOTSTRAP_INITDB", "bootstrap.initdb", Form::Lines),
    ("BOOTSTRAP_PG_HBA", "bootstrap.pg_hba", Form::Lines),
    ("BOOTSTRAP_USERS", "bootstrap.users", Form::Mapping),
    ("BOOTSTRAP_METHOD", "bootstrap.method", Form::Text),
    (
        "BOOTSTRAP_POST_BOOTSTRAP",
        "bootstrap.post_bootstrap",
        Form::Text,
    ),
    ("TAGS", "tags", Form::Mapping),
    ("WATCHDOG_MODE", "watchdog.mode", Form::Text),
    ("WATCHDOG_DEVICE", "watchdog.device", Form::Text),
    (
        "WATCHDOG_SAFETY_MARGIN",
        "watchdog.safety_margin",
        Form::Text,
    ),
    ("RUN_DIR", "trunkline.run_dir", Form::Text),
    ("CRASH_POLICY", "trunkline.crash_policy", Form::Text),
];

/// The three roles, each with the settings of a connection behind its name.
pub const ROLES: [(&str, &str); 3] = [
    ("SUPERUSER_", "superuser"),
    ("REPLICATION_", "replication"),
    ("REWIND_", "rewind"),
];

/// Settings of a role's connection, in lower case as the file has them.
pub const ROLE_SETTINGS: [&str; 12] = [
    "USERNAME",
    "PASSWORD",
    "SSLMODE",
    "SSLKEY",
    "SSLPASSWORD",
    "SSLCERT",
    "SSLROOTCERT",
    "SSLCRL",
    "SSLCRLDIR",
    "SSLNEGOTIATION",
    "GSSENCMODE",
    "CHANNEL_BINDING",
];

/// Sections of stores that are refused, and of what is not acted on: they are named by their variable.
pub const OTHER_SECTIONS: [&str; 7] = [
    "ETCD_",
    "CONSUL_",
    "ZOOKEEPER_",
    "EXHIBITOR_",
    "KUBERNETES_",
    "RAFT_",
    "CITUS_",
];

/// Keys of those sections.
pub const OTHER_KEYS: [&str; 48] = [
    "AUTH_DATA",
    "BIND_ADDR",
    "BOOTSTRAP_LABELS",
    "BYPASS_API_SERVICE",
    "CACERT",
    "CERT",
    "CHECKS",
    "CONSISTENCY",
    "CONTEXT",
    "DATABASE",
    "DATA_DIR",
    "DC",
    "FOLLOWER_LABEL_VALUE",
    "GROUP",
    "HOST",
    "HOSTS",
    "KEY",
    "KEY_PASSWORD",
    "LABELS",
    "LEADER_LABEL_VALUE",
    "NAMESPACE",
    "PARTNER_ADDRS",
    "PASSWORD",
    "POD_IP",
    "PORT",
    "PORTS",
    "PROTOCOL",
    "PROXY",
    "REGISTER_SERVICE",
    "RETRIABLE_HTTP_CODES",
    "ROLE_LABEL",
    "SCHEME",
    "SCOPE_LABEL",
    "SELF_ADDR",
    "SERVICE_CHECK_INTERVAL",
    "SERVICE_CHECK_TLS_SERVER_NAME",
    "SERVICE_TAGS",
    "SET_ACLS",
    "SRV",
    "SRV_SUFFIX",
    "STANDBY_LEADER_LABEL_VALUE",
    "TMP_ROLE_LABEL",
    "TOKEN",
    "URL",
    "USERNAME",
    "USE_ENDPOINTS",
    "USE_SSL",
    "VERIFY",
];
