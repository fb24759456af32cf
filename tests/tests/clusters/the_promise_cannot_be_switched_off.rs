//! The settings that carry the promise stay pgdeputy's, whatever a superuser tries.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::time::Duration;

use chaos::lab::Lab;
use chaos::session::Session;
use proto::MemberName;
use system_tests::scene;

const BOUND: Duration = Duration::from_secs(120);

const NAMES: &str = "synchronous_standby_names";

#[tokio::test]
async fn alter_system_cannot_take_the_synchronous_standbys_away() {
    let scene = scene(|_| {}).await;
    let lab = &scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    let primary = lab.primary().await.unwrap();
    let before = setting(lab, &primary).await;
    assert!(before.contains(".e1\""), "{before}");
    let superuser = lab.superuser(&primary).await.unwrap();
    for attack in ["ALTER SYSTEM SET synchronous_standby_names = ''", "ALTER SYSTEM RESET ALL"] {
        // It is refused, or it has no effect: both keep the promise.
        let tried = superuser.client().batch_execute(attack).await;
        eprintln!("{attack}: {tried:?}");
    }
    superuser.client().batch_execute("SELECT pg_reload_conf()").await.unwrap();
    // A setting that was taken away would show within the reload, a few milliseconds: look for a second.
    let until = store::clock::now() + Duration::from_secs(1);
    while store::clock::now() < until {
        assert_eq!(setting(lab, &primary).await, before);
    }
    drop(superuser);
    // A restart reads all files anew.
    lab.kill_postgres(&primary).unwrap();
    lab.wait_redundant(BOUND).await.unwrap();
    let primary = lab.primary().await.unwrap();
    assert!(!setting(lab, &primary).await.is_empty());
}

#[tokio::test]
async fn no_login_works_without_a_password() {
    let scene = scene(|_| {}).await;
    let lab = &scene.lab;
    lab.wait_redundant(BOUND).await.unwrap();
    for member in lab.members() {
        let mut by_socket = lab.superuser_at(&member).unwrap();
        let mut by_port = lab.application_at(&member).unwrap();
        for config in [&mut by_socket, by_port.user("pgdeputy").dbname("postgres")] {
            config.password("wrong");
            let refused = Session::open(config, Duration::from_secs(10)).await;
            let error =
                format!("{:?}", refused.err().unwrap_or_else(|| panic!("{member} let anybody in")));
            assert!(error.contains("password authentication failed"), "{error}");
        }
    }
}

async fn setting(lab: &Lab, member: &MemberName) -> String {
    let session = lab.superuser(member).await.unwrap();
    let row = session.client().query_one(&format!("SHOW {NAMES}"), &[]).await.unwrap();
    row.get(0)
}
