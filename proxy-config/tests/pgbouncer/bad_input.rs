//! What proxy-config refuses, and what it says of a PgBouncer that does not do what it is told.

use proxy_config::once;
use proxy_config::pgbouncer::console::{Console, ConsoleError};
use proxy_config::pgbouncer::entries::{Database, OLDEST};
use proxy_config::pgbouncer::file;
use proxy_config::pgbouncer::instance::{Board, Instance, Standing, Want};
use proxy_config::pgbouncer::render::{Entry, Kind, render};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::waiting::bounded;
use crate::world::{Pgbouncer, World, free_port, three};

async fn refusal(world: &World) -> String {
    let store = std::sync::Arc::new(world.store.clone());
    let run = proxy_config::run_on(store, world.config.clone(), CancellationToken::new());
    format!("{:#}", bounded("proxy-config refuses", run).await.unwrap_err())
}

#[tokio::test]
async fn a_file_of_somebody_else_or_of_another_cluster_is_refused_and_left_as_it_is() {
    let mut world = World::new("main");
    let _pgbouncer = world.add_pgbouncer("").await;
    let theirs = "[databases]\nshop = host=10.0.0.1\n";
    std::fs::write(world.file(), theirs).unwrap();
    let error = refusal(&world).await;
    assert!(error.contains("was not written by pgdeputy: move it away"), "{error}");
    assert_eq!(std::fs::read_to_string(world.file()).unwrap(), theirs);
    let ours = "; pgdeputy cluster other\n; pgdeputy epoch 3\n; pgdeputy write a\n";
    std::fs::write(world.file(), ours).unwrap();
    let error = refusal(&world).await;
    assert!(error.contains("belongs to cluster other, not main"), "{error}");
    assert_eq!(std::fs::read_to_string(world.file()).unwrap(), ours);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_with_the_remedy() {
    let mut world = World::new("main");
    let error = refusal(&world).await;
    assert!(error.contains("--pgbouncer-admin is missing"), "{error}");
    let console = world.add_pgbouncer("").await.console();
    world.pgbouncer().consoles.push(console);
    let error = refusal(&world).await;
    assert!(error.contains("names one PgBouncer twice"), "{error}");
    world.pgbouncer().consoles.pop();
    world.pgbouncer().wishes.databases.push("x read=main".parse().unwrap());
    let error = refusal(&world).await;
    assert!(error.contains("two entries would be named main"), "{error}");
    world.pgbouncer().file = "/nonexistent/main.ini".into();
    let error = refusal(&world).await;
    assert!(error.contains("its directory does not exist"), "{error}");
    world.config.pgbouncer = None;
    let error = refusal(&world).await;
    assert!(error.contains("there is nothing to keep in line"), "{error}");
}

#[tokio::test]
async fn a_path_that_cannot_be_written_is_named() {
    let world = World::new("main");
    let routes =
        proxy_config::route::Routes { write: Some("a".parse().unwrap()), ..Default::default() };
    let path = world.directory.path().join("missing/main.ini");
    let error = file::install(&path, &"main".parse().unwrap(), (&routes, "text")).unwrap_err();
    assert!(format!("{error:#}").contains("missing/main.ini: No such file"), "{error:#}");
    assert!(render(&world.config.pgbouncer.unwrap().wishes, &routes, OLDEST).is_none());
}

async fn login(pgbouncer: &Pgbouncer, user: &str, password: &str) -> ConsoleError {
    let mut config = pgbouncer.console();
    config.user(user).password(password);
    Console::open(&config).await.err().expect("the login is refused")
}

#[tokio::test]
async fn a_login_that_fails_a_user_without_the_right_and_a_dead_socket_are_told_apart() {
    let world = World::new("main");
    let mut pgbouncer =
        Pgbouncer::new(world.directory.path(), &[], "auth_type = scram-sha-256").await;
    let away = Console::open(&pgbouncer.console()).await.err().unwrap();
    assert!(matches!(&away, ConsoleError::Away(why) if why.contains("refused")), "{away}");
    pgbouncer.start().await;
    let wrong = login(&pgbouncer, "admin", "wrong").await.to_string();
    assert!(
        wrong.contains("refuses the login") && wrong.contains("SASL authentication failed"),
        "{wrong}"
    );
    let right = login(&pgbouncer, "app", "secret").await.to_string();
    assert!(right.contains("refuses the login: not allowed"), "{right}");
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(pgbouncer.port).user("admin").dbname("pgbouncer");
    let none = Console::open(&config).await.err().unwrap().to_string();
    assert!(none.contains("--pgbouncer-password-file"), "{none}");
}

#[tokio::test]
async fn a_pgbouncer_that_does_not_include_the_file_is_told_of_with_the_line_that_is_missing() {
    let world = World::new("main");
    let mut pgbouncer = Pgbouncer::new(world.directory.path(), &[], "").await;
    pgbouncer.start().await;
    let (name, host, port) = ("main".to_owned(), "127.0.0.1".to_owned(), free_port().await);
    let entries = vec![Entry { name, kind: Kind::Write, host, port }];
    let wants = watch::Sender::new(Want { file: 1, entries, ..Want::default() });
    let standings = std::sync::Arc::new(watch::Sender::new(vec![Standing::Unasked]));
    let board = Board { standings: standings.clone(), place: 0 };
    let stop = CancellationToken::new();
    let instance = Instance::new(pgbouncer.console(), &world.file());
    let follow = tokio::spawn(instance.follow(wants.subscribe(), board, stop.clone()));
    let mut seen = standings.subscribe();
    let refuses = seen.wait_for(|all| matches!(all[0], Standing::Refusing(_)));
    let said = format!("{:?}", bounded("it is told", refuses).await.unwrap()[0]);
    assert!(said.contains("(main missing or elsewhere)") && said.contains("%include"), "{said}");
    stop.cancel();
    bounded("it ends", follow).await.unwrap();
}

#[tokio::test]
async fn a_dry_run_shows_the_file_with_what_the_version_cannot_and_once_installs_it() {
    let mut world = World::new("main");
    let [a, b, c] = three().await;
    world.open(7, &[("a", &a), ("b", &b), ("c", &c)]).await;
    let mut pgbouncer = world.add_pgbouncer("").await;
    let limited = "main pool_size=5 transaction_timeout=3";
    assert!(limited.parse::<Database>().unwrap_err().to_string().contains("is not known here"));
    world.pgbouncer().wishes.users.push("app pool_size=3".parse().unwrap());
    let store = || std::sync::Arc::new(world.store.clone());
    let shown = once::preview_on(store(), &world.config).await.unwrap().lines.join("\n");
    assert!(
        shown.contains("+main = host=127.0.0.1") && shown.contains("app: pool_size is left out"),
        "{shown}"
    );
    assert!(!world.file().exists(), "a dry run changes nothing");
    let done = once::once_on(store(), &world.config).await.unwrap().lines.join("\n");
    assert!(done.contains("does not run yet"), "{done}");
    pgbouncer.start().await;
    pgbouncer.expect("main", "a").await;
    world.open(8, &[("b", &b), ("a", &a), ("c", &c)]).await;
    let done = once::once_on(store(), &world.config).await.unwrap().lines.join("\n");
    assert!(done.contains("follows"), "{done}");
    pgbouncer.expect("main", "b").await;
}
