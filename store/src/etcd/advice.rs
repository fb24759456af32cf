//! What an operator should do about a refusal: texts of TLS and of etcd's rights, with the flag that they are about.

use super::access::EtcdAccess;
use crate::types::{Operation, StoreError, Txn};

/// Returns what to do about a failure whose text is `why`, where it is one of certificates.
pub(super) fn about(why: &str, access: &EtcdAccess) -> Option<String> {
    let ca = || access.ca.as_deref().unwrap_or("--etcd-ca".as_ref()).display().to_string();
    let says = |text: &str| why.contains(text);
    Some(if says("fatal alert") {
        refused_by_etcd(why, access)
    } else if says("UnknownIssuer") || says("BadSignature") {
        format!("etcd's certificate is not signed by {} (--etcd-ca)", ca())
    } else if says("certificate expired") || says("Expired") {
        "etcd's certificate has expired, or this host's clock is wrong: renew the certificate"
            .into()
    } else if says("NotValidForName") || says("not valid for name") {
        "etcd's certificate does not name this host: add it as subjectAltName, or use a name it has"
            .into()
    } else if says("InvalidContentType") || says("tls handshake eof") {
        "etcd does not speak TLS here: give http:// in --etcd, or make etcd listen with https://"
            .into()
    } else if says("KeyMismatch") {
        "--etcd-key is not the key of --etcd-cert".into()
    } else {
        return None;
    })
}

/// Returns the same for the first connection. One that ends early then is hardly an etcd that has just died: a server of
/// TLS ends one that begins with anything else, and with TLS 1.3 it refuses a certificate after the handshake, so that its
/// reason is often lost on the way.
pub(super) fn about_the_first(why: &str, access: &EtcdAccess) -> Option<String> {
    let ended = ["frame with invalid size", "onnection reset", "roken pipe", "connection closed"];
    about(why, access).or_else(|| {
        let early = ended.iter().any(|text| why.contains(text));
        early.then(|| match access.ca {
            Some(_) => refused_by_etcd(why, access),
            None => {
                "if etcd listens with https://, give https:// in --etcd, and --etcd-ca".to_owned()
            }
        })
    })
}

/// etcd's alert says what it holds against our certificate, in the fewest of words.
fn refused_by_etcd(why: &str, access: &EtcdAccess) -> String {
    match &access.certificate {
        None => "etcd asks for a client certificate: give --etcd-cert and --etcd-key".to_owned(),
        Some(_) if why.contains("ProtocolVersion") || why.contains("HandshakeFailure") => {
            "etcd and this program have no TLS version or cipher in common: see --cipher-suites of etcd".to_owned()
        }
        Some(own) => format!(
            "etcd refuses the certificate of --etcd-cert: look with `openssl x509 -noout -dates -issuer -in {}` whether \
             it has expired, and whether etcd's --trusted-ca-file has signed it",
            own.certificate.display()
        ),
    }
}

/// Returns the refusal of a user that lacks a right, with the keys that it is about.
pub(super) fn denied(access: &EtcdAccess, what: &str, keys: &str) -> StoreError {
    let prefix = match keys.starts_with(crate::keys::ROOT) {
        true => keys.split('/').take(3).collect::<Vec<_>>().join("/") + "/",
        false => crate::keys::ROOT.to_owned(),
    };
    let prefix = prefix.replace("//", "/");
    StoreError::Refused(format!(
        "etcd lets {} not {what} {keys}: grant it with `etcdctl role grant-permission ROLE readwrite --prefix {prefix}`",
        access.whom()
    ))
}

/// Returns the keys of a transaction, as many as a person needs to see which they are.
pub(super) fn keys_of(txn: &Txn) -> String {
    let changed = txn.then.iter().map(|operation| match operation {
        Operation::Put { key, .. } | Operation::Delete { key } => key.as_str(),
    });
    let compared = txn.when.iter().map(crate::types::Guard::key);
    let mut keys: Vec<&str> = changed.chain(compared).collect();
    keys.dedup();
    keys.truncate(3);
    keys.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_names_the_keys_and_the_prefix_to_grant() {
        let access = EtcdAccess::default();
        let said = denied(&access, "read", "/pgdeputy/demo/").to_string();
        assert!(said.contains("not read /pgdeputy/demo/"), "{said}");
        assert!(said.contains("--prefix /pgdeputy/demo/`"), "{said}");
        let said =
            denied(&access, "write", "/pgdeputy/demo/state, /pgdeputy/demo/leader").to_string();
        assert!(said.contains("--prefix /pgdeputy/demo/`"), "{said}");
        let said = denied(&access, "read", "/pgdeputy/").to_string();
        assert!(said.contains("--prefix /pgdeputy/`"), "{said}");
    }
}
