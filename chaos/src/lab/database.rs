//! The lab's own sessions with PostgreSQL: the application's role and tables, and what a member holds.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use proto::{Lsn, MemberName};
use tokio_postgres::Config;
use tokio_postgres::types::ToSql;

use super::Lab;
use super::pgbouncer::LOOKUP;
use crate::session::Session;
use crate::verdict::Holding;

/// The application's role and its database.
pub const APPLICATION: &str = "demo";

/// For sessions of the lab that nothing is measured by.
const DEADLINE: Duration = Duration::from_secs(10);

const TABLES: &str = "CREATE TABLE IF NOT EXISTS load (id bigint PRIMARY KEY);
     CREATE TABLE IF NOT EXISTS beacon (id bigint PRIMARY KEY, timeline int NOT NULL);
     TRUNCATE load, beacon;";

impl Lab {
    /// How the application connects to what listens there.
    pub fn application(&self, host: Ipv4Addr, port: u16) -> Config {
        let mut config = Config::new();
        config.host(host.to_string()).port(port).user(APPLICATION).dbname(APPLICATION);
        config.password(&self.application_password).connect_timeout(DEADLINE);
        config
    }

    /// How the application connects to a member directly, past the proxy.
    pub fn application_at(&self, member: &MemberName) -> anyhow::Result<Config> {
        let at = self.address(member)?;
        Ok(self.application(at.host, at.postgres))
    }

    /// How the superuser connects to a member, by its Unix socket.
    pub fn superuser_at(&self, member: &MemberName) -> anyhow::Result<Config> {
        let file = self.home.layout.password("superuser");
        let password =
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let mut config = Config::new();
        config.host_path(self.home.layout.socket(member)).port(self.address(member)?.postgres);
        config
            .user("pgdeputy")
            .dbname("postgres")
            .password(password.trim_end())
            .connect_timeout(DEADLINE);
        Ok(config)
    }

    /// Opens a session as superuser.
    pub async fn superuser(&self, member: &MemberName) -> anyhow::Result<Session> {
        let session = Session::open(&self.superuser_at(member)?, DEADLINE).await;
        session.with_context(|| format!("log in to {member} as superuser"))
    }

    /// Creates the application's role, database and tables; empties the tables if they are there.
    pub async fn prepare_database(&self) -> anyhow::Result<()> {
        let primary = self.primary().await?;
        let session = self.superuser(&primary).await?;
        let known = "SELECT 1 FROM pg_roles WHERE rolname = $1";
        if session.client().query_opt(known, &[&APPLICATION]).await?.is_none() {
            let password = &self.application_password;
            let role = format!("CREATE ROLE {APPLICATION} LOGIN PASSWORD '{password}'");
            session.client().batch_execute(&role).await.context("create the application's role")?;
            let database = format!("CREATE DATABASE {APPLICATION} OWNER {APPLICATION}");
            session
                .client()
                .batch_execute(&database)
                .await
                .context("create the application's database")?;
        }
        let application = Session::open(&self.application_at(&primary)?, DEADLINE).await;
        let application =
            application.with_context(|| format!("log in to {primary} as the application"))?;
        application.client().batch_execute(TABLES).await.context("create the application's tables")
    }

    /// Has the application run these statements at the primary itself, to make more tables.
    pub async fn prepare_more(&self, statements: &str) -> anyhow::Result<()> {
        let primary = self.primary().await?;
        let session = Session::open(&self.application_at(&primary)?, DEADLINE).await?;
        session.client().batch_execute(statements).await.context("make more tables")
    }

    /// Lets PgBouncer look up users that are not in its file, and creates `user` for it to find; its password is the
    /// application's. The database has to be prepared.
    pub async fn allow_lookups(&self, user: &str) -> anyhow::Result<()> {
        let mut config = self.superuser_at(&self.primary().await?)?;
        config.dbname(APPLICATION);
        let session = Session::open(&config, DEADLINE).await.context("log in as superuser")?;
        let password = &self.application_password;
        // As PgBouncer's documentation of auth_query has it: the role reads the secrets by this function and nothing else.
        let lookup = format!(
            "CREATE ROLE {LOOKUP} LOGIN PASSWORD '{password}'; CREATE ROLE {user} LOGIN PASSWORD '{password}';
             CREATE FUNCTION pgbouncer_secret(wanted text, OUT name text, OUT secret text) RETURNS SETOF record
             LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS
             $$SELECT rolname::text, rolpassword FROM pg_authid WHERE rolname = wanted AND rolcanlogin$$;
             REVOKE ALL ON FUNCTION pgbouncer_secret(text) FROM PUBLIC;
             GRANT EXECUTE ON FUNCTION pgbouncer_secret(text) TO {LOOKUP};"
        );
        session.client().batch_execute(&lookup).await.context("allow lookups of users")
    }

    /// Returns what each member holds, read from each directly. Before a standby is read it has replayed all
    /// that the primary had flushed when this was called.
    pub async fn holdings(&self, bound: Duration) -> anyhow::Result<Vec<(MemberName, Holding)>> {
        let flushed = self.flushed().await?;
        let mut all = Vec::new();
        for member in self.members() {
            all.push((member.clone(), self.held_after(&member, &flushed, bound).await?));
        }
        Ok(all)
    }

    /// Returns the same of a cluster that is not whole: what those hold that can be read in time and have replayed all, and
    /// why the others are left out. Of a standby that has not replayed all nothing can be said.
    pub async fn holdings_there(
        &self,
        bound: Duration,
    ) -> (Vec<(MemberName, Holding)>, Vec<String>) {
        let flushed = match self.flushed().await {
            Ok(flushed) => flushed,
            Err(error) => return (Vec::new(), vec![format!("no member was read: {error:#}")]),
        };
        let (mut read, mut left_out) = (Vec::new(), Vec::new());
        for member in self.members() {
            match self.held_after(&member, &flushed, bound).await {
                Ok(held) => read.push((member, held)),
                Err(error) => left_out.push(format!("{member} was not read: {error:#}")),
            }
        }
        (read, left_out)
    }

    /// Returns the primary, and up to where its WAL is on disk.
    async fn flushed(&self) -> anyhow::Result<(MemberName, Lsn)> {
        let primary = self.primary().await?;
        let session = self.superuser(&primary).await?;
        let flushed = lsn(&session, "SELECT pg_current_wal_flush_lsn()::text").await?;
        Ok((primary, flushed))
    }

    async fn held_after(
        &self,
        member: &MemberName,
        (primary, flushed): &(MemberName, Lsn),
        bound: Duration,
    ) -> anyhow::Result<Holding> {
        if member != primary {
            self.replayed(member, *flushed, bound).await?;
        }
        self.holding(member).await.with_context(|| format!("read what {member} holds"))
    }

    async fn replayed(
        &self,
        member: &MemberName,
        until: Lsn,
        bound: Duration,
    ) -> anyhow::Result<()> {
        let session = self.superuser(member).await?;
        let deadline = store::clock::now() + bound;
        loop {
            let replayed =
                lsn(&session, "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0')::text").await?;
            if replayed >= until {
                return Ok(());
            }
            anyhow::ensure!(
                store::clock::now() < deadline,
                "{member} has replayed up to {replayed} and not up to {until} within {bound:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn holding(&self, member: &MemberName) -> anyhow::Result<Holding> {
        let session = Session::open(&self.application_at(member)?, DEADLINE).await?;
        let commits = ids(&session, "load").await?;
        let beacons = ids(&session, "beacon").await?;
        Ok(Holding { commits, beacons })
    }
}

async fn lsn(session: &Session, statement: &str) -> anyhow::Result<Lsn> {
    let row = tokio::time::timeout(DEADLINE, session.client().query_one(statement, &[])).await??;
    Ok(row.try_get::<_, &str>(0)?.parse()?)
}

/// Reads page by page: an hour of load makes more rows than one answer can bring in time.
async fn ids(session: &Session, table: &str) -> anyhow::Result<BTreeSet<i64>> {
    const PAGE: usize = 50_000;
    /// A page takes a tenth of a second; this is for a machine under load.
    const PAGE_DEADLINE: Duration = Duration::from_secs(30);
    let page = format!("SELECT id FROM {table} WHERE id > $1 ORDER BY id LIMIT {PAGE}");
    let mut all = BTreeSet::new();
    loop {
        let last = all.last().copied().unwrap_or(i64::MIN);
        let values: [&(dyn ToSql + Sync); 1] = [&last];
        let rows = session.client().query(&page, &values);
        let rows = tokio::time::timeout(PAGE_DEADLINE, rows).await??;
        for row in &rows {
            all.insert(row.try_get(0)?);
        }
        if rows.len() < PAGE {
            return Ok(all);
        }
    }
}
