//! Whether a member could be rewound, asked of real servers.

use keeper::postgres::rewindable::{Found, ask_other, problems};
use proto::spec::Permission;

use crate::cluster::Cluster;

#[tokio::test]
async fn what_a_rewind_would_lack_is_found_out_by_asking_as_a_rewind_would() {
    let mut other = Cluster::new(1).await;
    other.start().await;
    other.sql("CREATE ROLE rewinder LOGIN PASSWORD 'se''cret:\\x'");
    let source = keeper::postgres::source::Source { user: "rewinder".into(), ..other.source() };
    let password = "se'cret:\\x";
    let told = async || {
        let answer = ask_other(&source, password).await.map_err(|error| format!("{error:#}"));
        let mut found =
            Found { others: [("b".parse().unwrap(), answer)].into(), ..Found::default() };
        (found.own.logs_hints, found.own.full_page_writes) = (true, true);
        Vec::from_iter(problems(&found, Permission::Allowed)).join("\n")
    };
    let lacking = told().await;
    assert!(
        lacking.contains("may not call pg_ls_dir(text, boolean, boolean), pg_stat_file"),
        "{lacking}"
    );
    // What it says to do is what helps.
    let remedy = lacking.split("in database postgres: ").nth(1).unwrap();
    other.sql(&remedy.replace("pgdeputy_rewind", "rewinder"));
    assert_eq!(told().await, "");
    let wrong = ask_other(&source, "wrong").await.unwrap_err().to_string();
    assert!(wrong.contains("password") && !wrong.contains(password), "{wrong}");
    other.stop().await;
    assert!(told().await.contains("could not be rewound from b: "));
}
