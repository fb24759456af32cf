//! Real etcd, through etcd-client.
