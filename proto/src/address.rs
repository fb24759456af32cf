//! Where something listens and others connect to it: `host:port`, an IPv6 address in brackets.
//!
//! An address that is given to others must lead to one machine: wildcards and port 0 are refused.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host, by name or address, and a port that is not 0.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// Without brackets, as programs that take host and port apart want it.
    pub host: String,
    pub port: u16,
}

/// A text that is no address that others can connect to, with the remedy in its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an address that others can connect to: {problem}")]
pub struct AddressError {
    given: String,
    problem: &'static str,
}

const EXPECTED: &str = "use HOST:PORT, such as 10.0.0.1:5432 or [fd00::1]:5432";

impl FromStr for HostPort {
    type Err = AddressError;
    fn from_str(given: &str) -> Result<Self, AddressError> {
        let error = |problem| AddressError { given: given.to_owned(), problem };
        let (host, port) = given.rsplit_once(':').ok_or_else(|| error(EXPECTED))?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error(EXPECTED));
        }
        let port: u16 = port.parse().map_err(|_| error("the port is above 65535"))?;
        if port == 0 {
            return Err(error("port 0 means any port, choose one"));
        }
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(error("brackets hold an IPv6 address, such as [fd00::1]:5432")),
            None => host,
        };
        let named = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => Err(error(
                "it is the wildcard; name the one address of this host that the others use",
            )),
            Ok(IpAddr::V6(_)) if !given.starts_with('[') => {
                Err(error("write an IPv6 address in brackets, such as [fd00::1]:5432"))
            }
            Err(_) if host.is_empty() || !host.bytes().all(named) => Err(error(EXPECTED)),
            Ok(_) | Err(_) => Ok(Self { host: host.to_owned(), port }),
        }
    }
}

impl TryFrom<String> for HostPort {
    type Error = AddressError;
    fn try_from(given: String) -> Result<Self, AddressError> {
        given.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> String {
        address.to_string()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_both_kinds_of_ip_address_come_back_as_given() {
        for good in ["127.0.0.1:5432", "db-1.example.org:1", "[fd00::1]:65535", "localhost:5432"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        assert_eq!("[::1]:1".parse::<HostPort>().unwrap().host, "::1");
    }

    #[test]
    fn what_others_cannot_connect_to_is_refused_with_the_remedy() {
        for (bad, remedy) in [
            ("0.0.0.0:5432", "wildcard"),
            ("[::]:5432", "wildcard"),
            ("127.0.0.1:0", "port 0"),
            ("127.0.0.1:65536", "above 65535"),
            ("fd00::1:5432", "brackets"),
            ("[nonsense]:1", "brackets"),
            ("127.0.0.1", "HOST:PORT"),
            (":5432", "HOST:PORT"),
            ("a b:1", "HOST:PORT"),
            ("host:+1", "HOST:PORT"),
        ] {
            let error = bad.parse::<HostPort>().unwrap_err().to_string();
            assert!(error.contains(remedy), "{error}");
        }
    }
}
