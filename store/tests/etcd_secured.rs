//! etcd with TLS, client certificates and users: logins that end, and what is said of each refusal.
#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod common;

use std::time::Duration;

use common::etcd::Etcd;
use common::secured::{Authority, Secured};
use common::wire::Wire;
use common::{closing, committed, next_batch, put, put_under, txn, within};
use store::etcd::EtcdAccess;
use store::{EtcdStore, Guard, Store, StoreError};

const KEY: &str = "/pgdeputy/demo/k";

async fn connect(access: &EtcdAccess) -> EtcdStore {
    EtcdStore::connect(access).await.unwrap_or_else(|e| panic!("{e}"))
}

/// Returns what is said of an access with which nobody gets in.
async fn refused(access: &EtcdAccess) -> String {
    match EtcdStore::connect(access).await {
        Ok(_) => panic!("connected with {access:?}"),
        Err(error) => error.to_string(),
    }
}

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

/// Everything that a keeper does.
async fn work(store: &EtcdStore) {
    let (lease, _) = store.grant(Duration::from_secs(60)).await.unwrap();
    let mut watch = store.watch("/pgdeputy/demo/", 0).await.unwrap();
    let revision = committed(store.commit(txn([], [put_under(lease, KEY, "1")])).await);
    assert_eq!(next_batch(&mut watch).await.len(), 1);
    let looking = txn([Guard::ModRevision(KEY.into(), revision)], []);
    committed(store.commit(looking).await);
    store.keep_alive(lease).await.unwrap();
    assert_eq!(store.read("/pgdeputy/demo/").await.unwrap().entries.len(), 1);
    store.revoke(lease).await.unwrap();
}

#[tokio::test]
async fn a_login_that_has_ended_is_renewed_by_whatever_call_comes_first() {
    let secured = Secured::with_users(&["--auth-token-ttl", "1"]).await;
    let store = connect(&secured.access_as("pgdeputy", "right")).await;
    let (lease, _) = store.grant(Duration::from_secs(60)).await.unwrap();
    let mut old = store.watch("/pgdeputy/demo/", 0).await.unwrap();
    // What has ended is the login; nothing tells when, so this waits three times its length.
    let idle = || tokio::time::sleep(Duration::from_secs(3));
    idle().await;
    let mut new = store.watch("/pgdeputy/demo/", 0).await.unwrap();
    idle().await;
    committed(store.commit(txn([], [put(KEY, "1")])).await);
    assert_eq!(next_batch(&mut old).await.len(), 1, "a watch outlives the login");
    assert_eq!(next_batch(&mut new).await.len(), 1);
    idle().await;
    store.keep_alive(lease).await.unwrap();
    idle().await;
    store.grant(Duration::from_secs(60)).await.unwrap();
    idle().await;
    work(&store).await;
}

#[tokio::test]
async fn each_endpoint_is_logged_in_to_and_a_restarted_etcd_anew() {
    let mut secured = Secured::with_users(&[]).await;
    let address = secured.etcd.address();
    let wires = [Wire::to(address).await, Wire::to(address).await];
    wires[1].cut();
    let mut access = secured.access_as("pgdeputy", "right");
    access.endpoints = wires.iter().map(|w| w.url().replace("http", "https")).collect();
    let store = connect(&access).await;
    work(&store).await;
    for (cut, mended) in [(0, 1), (1, 0)] {
        let mut watch = store.watch("/pgdeputy/demo/", 0).await.unwrap();
        wires[mended].mend();
        wires[cut].cut();
        closing(&mut watch).await;
        work(&store).await;
    }
    // With it go all logins that it has given out.
    secured.etcd.restart().await;
    work(&store).await;
}

#[tokio::test]
async fn users_can_be_given_before_etcd_asks_for_them_and_a_new_password_needs_no_restart() {
    let secured = Secured::start(&[]).await;
    secured.make_users();
    let store = connect(&secured.access_as("pgdeputy", "right")).await;
    work(&store).await;
    secured.etcdctl(&["auth", "enable"]);
    work(&store).await;
    secured.etcdctl_as_root(&["user", "revoke-role", "pgdeputy", "deputy"]);
    let denied = store.read("/pgdeputy/demo/").await.unwrap_err().to_string();
    assert_says(&denied, &["pgdeputy", "not read /pgdeputy/demo/"]);
    secured.etcdctl_as_root(&["user", "grant-role", "pgdeputy", "deputy"]);
    work(&store).await;
    // The login that it has ends with the user.
    secured.etcdctl_as_root(&["user", "delete", "pgdeputy"]);
    assert!(store.read("/pgdeputy/demo/").await.is_err());
    secured.etcdctl_as_root(&["user", "add", "pgdeputy:new"]);
    secured.etcdctl_as_root(&["user", "grant-role", "pgdeputy", "deputy"]);
    let wrong = store.read("/pgdeputy/demo/").await.unwrap_err().to_string();
    assert_says(&wrong, &["authentication failed", "--etcd-password-file"]);
    secured.access_as("pgdeputy", "new");
    within("the new password to be read", async {
        while store.read("/pgdeputy/demo/").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    work(&store).await;
}

#[tokio::test]
async fn a_certificate_alone_names_the_user() {
    let secured = Secured::with_users(&[]).await;
    let named = secured.authority.issue("pgdeputy", 2);
    let access = EtcdAccess { certificate: Some(named), ..secured.access() };
    work(&connect(&access).await).await;
    let store = connect(&secured.access()).await;
    let said = store.read("/pgdeputy/demo/").await.unwrap_err().to_string();
    assert_says(&said, &["client.pem", "not read /pgdeputy/demo/"]);
}

#[tokio::test]
async fn a_wrong_or_missing_login_is_refused_with_the_flag_to_mend_and_no_password() {
    let secured = Secured::with_users(&[]).await;
    for (user, password) in [("pgdeputy", "wr0ng"), ("stranger", "wr0ng")] {
        let said = refused(&secured.access_as(user, password)).await;
        assert_says(&said, &["authentication failed", user, "--etcd-password-file"]);
        assert!(!said.contains("wr0ng"), "{said}");
    }
    let plain = Etcd::start().await;
    let access = EtcdAccess::from(&[plain.url()]);
    work(&connect(&access).await).await;
    let login = secured.access_as("pgdeputy", "right").login;
    work(&connect(&EtcdAccess { login, ..access }).await).await;
}

#[tokio::test]
async fn a_user_without_a_right_is_told_which_keys_it_lacks() {
    let secured = Secured::with_users(&[]).await;
    secured.etcdctl_as_root(&["user", "add", "reader:r"]);
    secured.etcdctl_as_root(&["role", "add", "look"]);
    secured.etcdctl_as_root(&[
        "role",
        "grant-permission",
        "look",
        "read",
        "--prefix",
        "/pgdeputy/demo/",
    ]);
    secured.etcdctl_as_root(&["user", "grant-role", "reader", "look"]);
    let store = connect(&secured.access_as("reader", "r")).await;
    store.read("/pgdeputy/demo/").await.unwrap();
    store.watch("/pgdeputy/demo/", 0).await.unwrap();
    let grant = "role grant-permission ROLE readwrite --prefix /pgdeputy/";
    let write = store.commit(txn([], [put(KEY, "")])).await.unwrap_err();
    assert!(matches!(write, StoreError::Refused(_)), "{write:?}");
    assert_says(&write.to_string(), &["reader", "not write /pgdeputy/demo/k", grant]);
    let read = store.read("/pgdeputy/other/").await.unwrap_err().to_string();
    assert_says(&read, &["reader", "not read /pgdeputy/other/", grant]);
    let watch = store.watch("/pgdeputy/other/", 0).await.err().unwrap().to_string();
    assert_says(&watch, &["reader", "not read /pgdeputy/other/", grant]);
}

#[tokio::test]
async fn a_certificate_that_etcd_refuses_is_named_with_the_way_to_look() {
    let secured = Secured::start(&[]).await;
    let other = Authority::new();
    for bad in [secured.authority.issue("late", 0), other.issue("pgdeputy", 2)] {
        let path = bad.certificate.display().to_string();
        let access = EtcdAccess { certificate: Some(bad), ..secured.access() };
        assert_says(&refused(&access).await, &["refuses the certificate", "openssl x509", &path]);
    }
    let without = EtcdAccess { certificate: None, ..secured.access() };
    assert_says(&refused(&without).await, &["--etcd-cert and --etcd-key"]);
    let mixed = secured.authority.issue("mixed", 2);
    let certificate = store::etcd::ClientCertificate { key: mixed.key, ..secured.own.clone() };
    let access = EtcdAccess { certificate: Some(certificate), ..secured.access() };
    assert_says(&refused(&access).await, &["--etcd-key is not the key of --etcd-cert"]);
}

#[tokio::test]
async fn an_etcd_that_cannot_be_trusted_is_named_with_the_reason() {
    let secured = Secured::start(&[]).await;
    let other = Authority::new();
    let access = EtcdAccess { ca: Some(other.ca()), ..secured.access() };
    assert_says(&refused(&access).await, &["not signed by", "--etcd-ca", &secured.etcd.url()]);
    let late = Authority::new();
    let server = late.issue("etcd", 0);
    let expired = Secured::start_as(late, server, &[]).await;
    assert_says(&refused(&expired.access()).await, &["has expired", "clock"]);
    let elsewhere = Authority::new();
    let server = elsewhere.issue_for("etcd", 2, &[[127, 0, 0, 1].into()]);
    let misnamed = Secured::start_as(elsewhere, server, &[]).await;
    assert_says(&refused(&misnamed.access()).await, &["does not name this host"]);
}

#[tokio::test]
async fn http_against_https_and_the_reverse_say_what_to_give() {
    let secured = Secured::start(&[]).await;
    let plainly = EtcdAccess::from(&[secured.etcd.url().replace("https", "http")]);
    assert_says(&refused(&plainly).await, &["give https://", "--etcd-ca"]);
    let plain = Etcd::start().await;
    let endpoints = vec![plain.url().replace("http", "https")];
    let secretly = EtcdAccess { endpoints, ..secured.access() };
    assert_says(&refused(&secretly).await, &["does not speak TLS", "give http://"]);
}
