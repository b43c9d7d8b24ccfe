//! The file that `--generate-sample-config` prints.

/// A configuration that works after addresses and passwords were put in.
pub const SAMPLE: &str = r#"scope: demo                     # the cluster
name: n1                        # this member, unique in the cluster
#namespace: /service            # what the keys of all clusters begin with

restapi:
  listen: 0.0.0.0:8008
  connect_address: 10.0.0.1:8008
  #authentication: {username: admin, password: change-me}

etcd3:
  hosts: 10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379
  #protocol: https
  #cacert: /etc/trunkline/etcd-ca.pem

bootstrap:                      # read once, by the member that makes the cluster
  dcs:
    ttl: 30
    loop_wait: 10
    retry_timeout: 10
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: true
      parameters:
        max_connections: 100
  initdb:
  - encoding: UTF8
  - data-checksums

postgresql:
  listen: 0.0.0.0:5432
  connect_address: 10.0.0.1:5432
  data_dir: /var/lib/postgresql/15/main
  bin_dir: /usr/lib/postgresql/15/bin
  authentication:
    superuser: {username: postgres, password: change-me}
    replication: {username: replicator, password: change-me}
  pg_hba:
  - local all all peer
  - host replication replicator 10.0.0.0/24 scram-sha-256
  - host all all 10.0.0.0/24 scram-sha-256

tags:
  nofailover: false
  noloadbalance: false
  clonefrom: false
  nosync: false

#trunkline:                     # what Patroni does not have
#  run_dir: /run/trunkline/demo-n1
#  crash_policy: auto           # auto, restart, failover
"#;
