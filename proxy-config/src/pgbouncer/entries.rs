//! What an operator wants of PgBouncer: databases by name, and limits for databases and users, in PgBouncer's own words.
//!
//! The one rule: only what the oldest running PgBouncer understands is written, because it refuses a whole file for one
//! word that it does not know. What is left out is said.

use std::fmt;
use std::str::FromStr;

/// A release of PgBouncer, without its patch level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The oldest that is supported, and what is assumed of one that has not been asked yet.
pub const OLDEST: Version = Version(1, 18);

impl Version {
    /// Reads the answer of `SHOW VERSION`, such as `PgBouncer 1.18.0`.
    pub fn of_banner(banner: &str) -> Option<Self> {
        let mut numbers = banner.strip_prefix("PgBouncer ")?.split('.');
        let major = numbers.next()?.trim().parse().ok()?;
        let minor = numbers.next()?.chars().take_while(char::is_ascii_digit).collect::<String>();
        Some(Self(major, minor.parse().ok()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Number,
    Mode,
    Word,
}

/// A word of PgBouncer's, the first release that knows it (looked up in the source of each), and what it takes.
type Known = (&'static str, Version, Value);

/// Of a database. Where it leads to is pgdeputy's part; passwords belong into `auth_file`, not into a world of readers.
const OF_DATABASE: [Known; 13] = [
    ("dbname", OLDEST, Value::Word),
    ("pool_size", OLDEST, Value::Number),
    ("min_pool_size", OLDEST, Value::Number),
    ("reserve_pool", OLDEST, Value::Number),
    ("pool_mode", OLDEST, Value::Mode),
    ("max_db_connections", OLDEST, Value::Number),
    ("max_db_client_connections", Version(1, 24), Value::Number),
    ("server_lifetime", Version(1, 23), Value::Number),
    ("auth_user", OLDEST, Value::Word),
    ("auth_dbname", Version(1, 19), Value::Word),
    ("application_name", OLDEST, Value::Word),
    ("client_encoding", OLDEST, Value::Word),
    ("timezone", OLDEST, Value::Word),
];

const OF_USER: [Known; 9] = [
    ("pool_mode", OLDEST, Value::Mode),
    ("max_user_connections", OLDEST, Value::Number),
    ("pool_size", Version(1, 23), Value::Number),
    ("reserve_pool_size", Version(1, 24), Value::Number),
    ("max_user_client_connections", Version(1, 24), Value::Number),
    ("query_timeout", Version(1, 24), Value::Number),
    ("idle_transaction_timeout", Version(1, 24), Value::Number),
    ("client_idle_timeout", Version(1, 24), Value::Number),
    ("transaction_timeout", Version(1, 25), Value::Number),
];

/// What keeps one tenant from taking every server connection: without any of these it can.
const SERVER_LIMITS: [&str; 2] = ["pool_size", "max_db_connections"];

/// One database for writes, and its twin for reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// What clients ask for; `*` is every name that has no entry of its own.
    pub name: String,
    /// The name under which the same database leads to the standbys; `*` has none.
    pub reads: Option<String>,
    options: Vec<Setting>,
    read_options: Vec<Setting>,
}

/// The limits of one user, over all databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    options: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    key: &'static str,
    since: Version,
    value: String,
}

/// An entry that is not understood, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?}: {problem}")]
pub struct EntryError {
    given: String,
    problem: String,
}

impl FromStr for Database {
    type Err = EntryError;

    /// Reads `NAME [read=NAME|none] [WORD=VALUE ...]`; a word with `read_` in front counts for the read entry alone.
    fn from_str(given: &str) -> Result<Self, EntryError> {
        let error = |problem: String| EntryError { given: given.to_owned(), problem };
        let (name, words) = name_and_words(given).map_err(error)?;
        if name != "*" {
            check_name(name).map_err(error)?;
        }
        let mut reads = (name != "*").then(|| format!("{name}_ro"));
        let (mut options, mut read_options) = (Vec::new(), Vec::new());
        for (key, value) in words {
            match key.strip_prefix("read_") {
                None if key == "read" && value == "none" => reads = None,
                None if key == "read" => {
                    check_name(value).map_err(error)?;
                    reads = Some(value.to_owned());
                }
                Some(key) => add(&mut read_options, &OF_DATABASE, (key, value)).map_err(error)?,
                None => add(&mut options, &OF_DATABASE, (key, value)).map_err(error)?,
            }
        }
        if name == "*" && reads.is_none() && !read_options.is_empty() {
            return Err(error(
                "PgBouncer has one * and it takes the writes: name a read entry with read=".into(),
            ));
        }
        Ok(Self { name: name.to_owned(), reads, options, read_options })
    }
}

impl FromStr for User {
    type Err = EntryError;

    /// Reads `NAME WORD=VALUE ...`.
    fn from_str(given: &str) -> Result<Self, EntryError> {
        let error = |problem: String| EntryError { given: given.to_owned(), problem };
        let (name, words) = name_and_words(given).map_err(error)?;
        check_name(name).map_err(error)?;
        let mut options = Vec::new();
        for pair in words {
            add(&mut options, &OF_USER, pair).map_err(error)?;
        }
        match options.is_empty() {
            true => Err(error("it sets no limit: add one, such as max_user_connections=50".into())),
            false => Ok(Self { name: name.to_owned(), options }),
        }
    }
}

impl Database {
    /// Returns the options of the write entry for PgBouncer `version`.
    pub fn write_options(&self, version: Version) -> String {
        text(&self.options, version)
    }

    /// Returns those of the read entry: the same, but for what was given for reads alone.
    pub fn read_options(&self, version: Version) -> String {
        let is_own = |s: &&Setting| !self.read_options.iter().any(|own| own.key == s.key);
        let mut options: Vec<Setting> = self.options.iter().filter(is_own).cloned().collect();
        if self.reads.is_some()
            && !options.iter().chain(&self.read_options).any(|s| s.key == "dbname")
        {
            options.insert(0, Setting { key: "dbname", since: OLDEST, value: self.name.clone() });
        }
        options.extend(self.read_options.iter().cloned());
        text(&options, version)
    }

    /// Returns what a person should know of this entry.
    pub fn notes(&self, version: Version) -> Vec<String> {
        let mut notes =
            left_out(&self.name, self.options.iter().chain(&self.read_options), version);
        if !self.options.iter().any(|s| SERVER_LIMITS.contains(&s.key)) {
            notes.push(format!(
                "database {}: no pool_size and no max_db_connections, so PgBouncer's default_pool_size counts for each \
                 user of it, and many users can take every server connection",
                self.name
            ));
        }
        if self.name == "*" && self.reads.is_none() {
            notes.push(
                "database *: PgBouncer's * has no read entry: list a database by name to get one"
                    .into(),
            );
        }
        notes
    }
}

impl User {
    /// Returns the limits for PgBouncer `version`; none if it knows none of them.
    pub fn limits(&self, version: Version) -> Option<String> {
        Some(text(&self.options, version)).filter(|text| !text.is_empty())
    }

    /// Returns what a person should know of this entry.
    pub fn notes(&self, version: Version) -> Vec<String> {
        left_out(&self.name, self.options.iter(), version)
    }
}

type Pairs<'a> = Vec<(&'a str, &'a str)>;

fn name_and_words(given: &str) -> Result<(&str, Pairs<'_>), String> {
    let mut words = given.split_whitespace();
    let name = words.next().ok_or("it is empty: begin with a name")?;
    let pairs = words.map(|word| {
        word.split_once('=').ok_or_else(|| format!("{word:?} is not of the form word=value"))
    });
    Ok((name, pairs.collect::<Result<_, _>>()?))
}

/// PgBouncer takes more in quotes; these need none, in its file nor in its commands.
fn check_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if name == "pgbouncer" {
        return Err("pgbouncer is the name of PgBouncer's own console".into());
    }
    match !name.is_empty() && name.len() <= 63 && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(format!("{name:?} is no name: use up to 63 letters, digits and _ . -")),
    }
}

fn add(options: &mut Vec<Setting>, known: &[Known], pair: (&str, &str)) -> Result<(), String> {
    let (key, value) = (
        if pair.0 == "reserve_pool_size" && is_of_database(known) {
            "reserve_pool"
        } else {
            pair.0
        },
        pair.1,
    );
    let Some((key, since, takes)) = known.iter().find(|(k, ..)| *k == key) else {
        let all: Vec<&str> = known.iter().map(|(k, ..)| *k).collect();
        return Err(format!("{key} is not known here: use {}", all.join(", ")));
    };
    let fits = match takes {
        Value::Number => value.len() <= 9 && value.parse::<u32>().is_ok(),
        Value::Mode => ["session", "transaction", "statement"].contains(&value),
        Value::Word => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-/+:".contains(&b);
            !value.is_empty() && value.bytes().all(plain)
        }
    };
    if !fits {
        let expected = match takes {
            Value::Number => "a number",
            Value::Mode => "session, transaction or statement",
            Value::Word => "a word of letters, digits and _ . - / + :",
        };
        return Err(format!("{key}={value}: use {expected}"));
    }
    if options.iter().any(|s| s.key == *key) {
        return Err(format!("{key} stands there twice"));
    }
    options.push(Setting { key, since: *since, value: value.to_owned() });
    Ok(())
}

fn is_of_database(known: &[Known]) -> bool {
    known.iter().any(|(key, ..)| *key == "dbname")
}

fn text(options: &[Setting], version: Version) -> String {
    let words =
        options.iter().filter(|s| s.since <= version).map(|s| format!("{}={}", s.key, s.value));
    words.collect::<Vec<_>>().join(" ")
}

fn left_out<'a>(
    name: &str,
    options: impl Iterator<Item = &'a Setting>,
    version: Version,
) -> Vec<String> {
    let newer = options.filter(|s| s.since > version);
    let say = |s: &Setting| {
        format!(
            "{name}: {} is left out: PgBouncer {version} does not know it, {} does",
            s.key, s.since
        )
    };
    newer.map(say).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: FromStr<Err = EntryError>>(given: &str) -> String {
        given.parse::<T>().err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_database_has_a_twin_for_reads_with_the_same_limits_and_its_own() {
        let shop: Database =
            "shop pool_size=20 max_db_connections=60 read_pool_size=40".parse().unwrap();
        assert_eq!(shop.reads.as_deref(), Some("shop_ro"));
        assert_eq!(shop.write_options(OLDEST), "pool_size=20 max_db_connections=60");
        assert_eq!(shop.read_options(OLDEST), "dbname=shop max_db_connections=60 pool_size=40");
        assert!(shop.notes(OLDEST).is_empty());
        let renamed: Database = "shop dbname=shop2 read=reports pool_size=1".parse().unwrap();
        assert_eq!(renamed.reads.as_deref(), Some("reports"));
        assert_eq!(renamed.read_options(OLDEST), "dbname=shop2 pool_size=1");
        assert_eq!("shop read=none".parse::<Database>().unwrap().reads, None);
    }

    #[test]
    fn what_a_version_does_not_know_is_left_out_and_said() {
        let shop: Database = "shop pool_size=5 max_db_client_connections=100".parse().unwrap();
        assert_eq!(shop.write_options(Version(1, 23)), "pool_size=5");
        assert_eq!(
            shop.notes(Version(1, 23)),
            [
                "shop: max_db_client_connections is left out: PgBouncer 1.23 does not know it, 1.24 does"
            ]
        );
        assert_eq!(shop.write_options(Version(1, 24)), "pool_size=5 max_db_client_connections=100");
        let app: User = "app pool_size=5".parse().unwrap();
        assert_eq!(
            (app.limits(OLDEST), app.limits(Version(1, 23))),
            (None, Some("pool_size=5".into()))
        );
    }

    #[test]
    fn a_tenant_without_a_limit_is_named() {
        let notes = "shop".parse::<Database>().unwrap().notes(OLDEST).join("\n");
        assert!(notes.contains("many users can take every server connection"), "{notes}");
        let notes = "* pool_size=5".parse::<Database>().unwrap().notes(OLDEST).join("\n");
        assert!(notes.contains("list a database by name"), "{notes}");
    }

    #[test]
    fn what_pgbouncer_would_refuse_or_misread_is_refused_with_the_remedy() {
        for (given, remedy) in [
            ("", "begin with a name"),
            ("a;b", "is no name"),
            ("pgbouncer", "own console"),
            ("shop host=10.0.0.1", "host is not known here"),
            ("shop pool_size=many", "use a number"),
            ("shop pool_mode=fast", "session, transaction or statement"),
            ("shop pool_size", "word=value"),
            ("shop pool_size=1 pool_size=2", "twice"),
            ("shop reserve_pool=1 reserve_pool_size=2", "twice"),
            ("shop dbname=x'y", "use a word"),
            ("shop read=a'b", "is no name"),
            ("* read_pool_size=3", "name a read entry"),
        ] {
            assert!(
                refused::<Database>(given).contains(remedy),
                "{given}: {}",
                refused::<Database>(given)
            );
        }
        assert!(refused::<User>("app").contains("max_user_connections"));
        assert!(refused::<User>("app max_db_connections=3").contains("not known here"));
    }

    #[test]
    fn a_banner_gives_the_version() {
        assert_eq!(Version::of_banner("PgBouncer 1.18.0"), Some(OLDEST));
        assert_eq!(Version::of_banner("PgBouncer 1.26devel"), Some(Version(1, 26)));
        assert_eq!(Version::of_banner("odyssey"), None);
    }
}
