//! Where a flag's value comes from: the command line, else `PGDEPUTY_<FLAG>`, else the file of `--config`, else
//! its default.
//!
//! The one rule: all four go through the same parser, so that a value means the same wherever it stands. The
//! file's values become defaults of the command line's own definition; a key that no flag has is an error.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use crate::args::Cli;
use crate::failure::Failure;

/// What the command line asks for.
pub enum Parsed {
    Asked(Box<Cli>),
    /// A text to print, and nothing else.
    Help(String),
}

/// Reads the command line `given` (with the program's name first), the environment and the file.
pub fn parse(given: Vec<OsString>) -> Result<Parsed, Failure> {
    let file = match config_path(&given) {
        Some(path) => read_file(&path)?,
        None => Table::new(),
    };
    parse_with(given, file)
}

fn parse_with(given: Vec<OsString>, file: Table) -> Result<Parsed, Failure> {
    let command = layered(Cli::command(), &file)?;
    let matches = match command.try_get_matches_from(given) {
        Ok(matches) => matches,
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Parsed::Help(e.render().to_string()));
        }
        Err(e) => return Err(Failure::Usage(one_line(&e))),
    };
    let cli = Cli::from_arg_matches(&matches).map_err(|e| Failure::Usage(one_line(&e)))?;
    Ok(Parsed::Asked(Box::new(cli)))
}

/// Finds `--config` before the command line can be read, because reading it needs the file.
fn config_path(given: &[OsString]) -> Option<PathBuf> {
    let mut words = given.iter().skip(1).take_while(|w| *w != "--");
    while let Some(word) = words.next() {
        if word == "--config" {
            return words.next().map(PathBuf::from);
        }
        if let Some(path) = word.to_str().and_then(|w| w.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    std::env::var_os("PGDEPUTY_CONFIG").map(PathBuf::from)
}

fn read_file(path: &Path) -> Result<Table, Failure> {
    let about = |problem: String| Failure::usage(format!("--config {}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| about(e.to_string()))?;
    let table: Table = toml::from_str(&text).map_err(|e| about(toml_problem(&text, &e)))?;
    normal(table).and_then(|t| check_keys(&t).map(|()| t)).map_err(about)
}

/// Returns what is wrong with a TOML text, with its line, without the drawing of it.
pub fn toml_problem(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim();
    match error.span() {
        Some(span) => {
            let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message.to_owned(),
    }
}

/// Takes `data_dir` for `data-dir`, since files are written with either.
fn normal(table: Table) -> Result<Table, String> {
    let mut out = Table::new();
    for (key, value) in table {
        let key = key.replace('_', "-");
        let value = match value {
            Value::Table(inner) => Value::Table(normal(inner)?),
            other => other,
        };
        if out.insert(key.clone(), value).is_some() {
            return Err(format!("key {key:?} stands there twice"));
        }
    }
    Ok(out)
}

fn check_keys(file: &Table) -> Result<(), String> {
    let cli = Cli::command();
    let anywhere = |key: &str| has(&cli, key) || cli.get_subcommands().any(|c| command_has(c, key));
    for (key, value) in file {
        match value {
            Value::Table(table) => {
                let Some(command) = cli.find_subcommand(key) else {
                    return Err(format!("table [{key}] is not a command of pgdeputy"));
                };
                if let Some(unknown) =
                    table.keys().find(|k| !command_has(command, k) && !has(&cli, k))
                {
                    return Err(format!(
                        "unknown key {unknown:?} in [{key}]: it has no flag --{unknown}"
                    ));
                }
            }
            _ if anywhere(key) => {}
            _ => return Err(format!("unknown key {key:?}: no command has a flag --{key}")),
        }
    }
    Ok(())
}

/// Returns whether `key` may stand in a file for `command`. A file names no other file.
fn has(command: &clap::Command, key: &str) -> bool {
    command.get_arguments().any(|a| is_layered(a) && a.get_long() == Some(key) && key != "config")
}

/// Returns whether `key` may stand in a file for a command of pgdeputy or one of its parts, such as `lab up`.
fn command_has(command: &clap::Command, key: &str) -> bool {
    has(command, key) || command.get_subcommands().any(|part| has(part, key))
}

fn is_layered(arg: &Arg) -> bool {
    !matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    )
}

/// Gives each flag its variable, and the value of the file as its default.
fn layered(cli: clap::Command, file: &Table) -> Result<clap::Command, Failure> {
    let mut problem = None;
    let mut layer = |arg: Arg, tables: &[&Table]| {
        let Some(key) = arg.get_long().filter(|_| is_layered(&arg)).map(str::to_owned) else {
            return arg;
        };
        let variable = format!("PGDEPUTY_{}", key.to_uppercase().replace('-', "_"));
        let arg = arg.env(variable).hide_env(true);
        let arg = match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(clap::builder::BoolishValueParser::new()),
            _ => arg,
        };
        let Some(value) = tables.iter().find_map(|t| t.get(&key)).filter(|v| !v.is_table()) else {
            return arg;
        };
        match texts(value) {
            Some(texts) => arg.required(false).default_values(texts),
            None => {
                problem = Some(format!(
                    "--config: {key} = {value} is neither a text, a number, true or false, nor a list"
                ));
                arg
            }
        }
    };
    let none = Table::new();
    let names: Vec<String> = cli.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let mut cli = cli.mut_args(|arg| layer(arg, &[file]));
    for name in names {
        let own = file.get(&name).and_then(Value::as_table).unwrap_or(&none);
        cli = cli.mut_subcommand(&name, |command| {
            let parts: Vec<String> =
                command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
            let command = command.mut_args(|arg| layer(arg, &[own, file]));
            parts.into_iter().fold(command, |command, part| {
                command.mut_subcommand(part, |c| c.mut_args(|arg| layer(arg, &[own, file])))
            })
        });
    }
    match problem {
        Some(problem) => Err(Failure::Usage(problem)),
        None => Ok(cli),
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Boolean(yes) => Some(vec![yes.to_string()]),
        Value::Array(list) => {
            let texts: Vec<Vec<String>> = list.iter().map(texts).collect::<Option<_>>()?;
            Some(texts.concat())
        }
        Value::Float(_) | Value::Datetime(_) | Value::Table(_) => None,
    }
}

/// Returns the first paragraph of a complaint of clap's, which is the complaint; usage and hints follow it.
fn one_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing, see pgdeputy --help".to_owned();
    }
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or(&text);
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let problem = words.join(" ").trim_start_matches("error: ").to_owned();
    match error.kind() {
        ErrorKind::UnknownArgument
        | ErrorKind::InvalidSubcommand
        | ErrorKind::MissingRequiredArgument => {
            format!("{problem}; --help lists what there is")
        }
        _ => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, LogFormat};

    fn parsed(line: &str, file: &str) -> Result<Cli, String> {
        let file =
            normal(toml::from_str(file).unwrap()).and_then(|t| check_keys(&t).map(|()| t))?;
        let words = line.split(' ').map(OsString::from).collect();
        match parse_with(words, file) {
            Ok(Parsed::Asked(cli)) => Ok(*cli),
            Ok(Parsed::Help(text)) => Err(format!("help: {text}")),
            Err(failure) => Err(failure.line()),
        }
    }

    fn sentinel(line: &str, file: &str) -> String {
        match parsed(line, file).map(|cli| cli.command) {
            Ok(Command::Sentinel(args)) => format!("{args:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
        layered(Cli::command(), &Table::new()).unwrap().debug_assert();
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file =
            "log-format = \"json\"\netcd = [\"http://a:1\", \"http://b:1\"]\ncluster = \"demo\"\n";
        let cli = parsed("pgdeputy sentinel", file).unwrap();
        assert_eq!(cli.common.log_format, LogFormat::Json);
        let text = sentinel("pgdeputy sentinel", file);
        assert!(
            text.contains(r#"etcd: ["http://a:1", "http://b:1"]"#)
                && text.contains("cluster: [demo]"),
            "{text}"
        );
        let text = sentinel("pgdeputy sentinel --etcd http://c:1 --cluster x --cluster y", file);
        assert!(
            text.contains(r#"etcd: ["http://c:1"]"#) && text.contains("cluster: [x, y]"),
            "{text}"
        );
        let cli = parsed("pgdeputy sentinel --log-format text", file).unwrap();
        assert_eq!(cli.common.log_format, LogFormat::Text);
    }

    #[test]
    fn the_table_of_a_command_wins_over_what_counts_for_all_and_is_no_concern_of_others() {
        let file = "etcd = \"http://a:1,http://b:1\"\n[sentinel]\nall_clusters = true\netcd = \"http://c:1\"\n\
                    [keeper]\nlisten = \"10.0.0.1:5432\"";
        let text = sentinel("pgdeputy sentinel", file);
        assert!(
            text.contains(r#"["http://c:1"]"#) && text.contains("all_clusters: true"),
            "{text}"
        );
        assert!(text.contains("listen: None"), "{text}");
        let Ok(Command::Status(args)) =
            parsed("pgdeputy status --cluster demo", file).map(|c| c.command)
        else {
            panic!("status is asked for");
        };
        assert!(format!("{args:?}").contains(r#"["http://a:1", "http://b:1"]"#), "{args:?}");
    }

    #[test]
    fn keys_without_a_flag_are_errors_also_in_tables_of_other_commands() {
        for (file, named) in [
            ("clutser = \"x\"", "unknown key \"clutser\""),
            ("config = \"x\"", "unknown key \"config\""),
            ("help = true", "unknown key \"help\""),
            ("[keeper]\nwrite-port = 1", "unknown key \"write-port\" in [keeper]"),
            ("[keepr]\nmember = \"a\"", "[keepr] is not a command"),
            ("data-dir = \"a\"\ndata_dir = \"b\"", "twice"),
            ("cluster = 1.5", "neither a text"),
        ] {
            let problem = parsed("pgdeputy status --cluster a --etcd a:1", file).unwrap_err();
            assert!(problem.contains(named), "{problem}");
        }
    }

    #[test]
    fn a_value_of_the_file_is_judged_like_a_flag() {
        let file = "etcd = \"a:1\"\nwrite-port = 99999\nread-port = 2\nhaproxy-config = \"/a\"\nhaproxy-socket = \"/b\"";
        let problem = parsed("pgdeputy proxy-config --cluster demo", file).unwrap_err();
        assert!(problem.contains("99999") && problem.contains("--write-port"), "{problem}");
        let problem = parsed("pgdeputy proxy-config --cluster Demo", "").unwrap_err();
        assert!(problem.contains("cluster name \"Demo\" is not valid"), "{problem}");
    }

    #[test]
    fn the_shipped_examples_are_read_by_the_commands_they_are_for() {
        for (command, file) in [
            ("keeper", include_str!("../../deploy/examples/keeper.toml")),
            ("sentinel", include_str!("../../deploy/examples/sentinel.toml")),
            ("proxy-config", include_str!("../../deploy/examples/proxy-config.toml")),
        ] {
            let read = parsed(&format!("pgdeputy {command}"), file);
            assert!(read.is_ok(), "{command}: {read:?}");
        }
    }

    #[test]
    fn complaints_are_one_line_and_help_is_no_complaint() {
        let missing = parsed("pgdeputy status", "").unwrap_err();
        assert!(
            missing.contains("--cluster <NAME>") && missing.contains("--etcd <URL>"),
            "{missing}"
        );
        assert!(
            !missing.contains('\n') && missing.starts_with("pgdeputy: the following"),
            "{missing}"
        );
        assert!(parsed("pgdeputy", "").unwrap_err().contains("a command is missing"));
        assert!(parsed("pgdeputy status --nonsense", "").unwrap_err().contains("--nonsense"));
        assert!(parsed("pgdeputy --help", "").unwrap_err().starts_with("help: "));
        assert!(
            parsed("pgdeputy keeper --help", "cluster = \"a\"").unwrap_err().contains("--data-dir")
        );
        assert!(parsed("pgdeputy --version", "").unwrap_err().starts_with("help: pgdeputy "));
    }
}
