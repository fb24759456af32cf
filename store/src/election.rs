//! Campaigning for a key under a lease: the leader's writes are guarded by the key's create revision.
