//! The command line: what there is, what is wrong usage, and what is generated from it.

use crate::support::Home;

/// Commands of a help text.
fn commands(help: &str) -> Vec<&str> {
    let section = help.split("Commands:\n").nth(1).expect("there are commands");
    let lines = section.lines().take_while(|line| !line.trim().is_empty());
    lines
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

#[test]
fn help_names_every_command_that_exists_and_no_other() {
    let home = Home::fresh();
    let expected = [
        "up",
        "init",
        "serve",
        "recover",
        "node",
        "pool",
        "volume",
        "snapshot",
        "clone",
        "revert",
        "group",
        "events",
        "reclaim",
        "scrub",
        "fsck",
        "domain",
        "key",
        "status",
        "cpu",
        "completions",
        "man",
        "help",
    ];
    assert_eq!(commands(&home.run(&["help"]).ok()), expected);
    let node = ["add", "list", "show", "edit", "drain", "activate", "fail", "replace", "remove", "help"];
    assert_eq!(commands(&home.run(&["node", "--help"]).ok()), node);
    assert_eq!(commands(&home.run(&["pool", "--help"]).ok()), ["profile", "help"]);
    assert_eq!(commands(&home.run(&["domain", "--help"]).ok()), ["create", "list", "show", "delete", "help"]);
    let group = ["create", "list", "show", "edit", "snap", "delete", "help"];
    assert_eq!(commands(&home.run(&["group", "--help"]).ok()), group);
    let snapshot = ["create", "list", "delete", "diff", "help"];
    assert_eq!(commands(&home.run(&["snapshot", "--help"]).ok()), snapshot);
    let key = ["show", "rotate", "passphrase", "export", "publish", "help"];
    assert_eq!(commands(&home.run(&["key", "--help"]).ok()), key);
    let volume = ["create", "list", "show", "resize", "rename", "delete", "import", "export", "help"];
    assert_eq!(commands(&home.run(&["volume", "--help"]).ok()), volume);
}

#[test]
fn help_reads_like_a_manual() {
    let help = Home::fresh().run(&["help"]).ok();
    for part in
        ["Usage: cairn", "Getting started:", "CAIRN_DIR", "AWS_ACCESS_KEY_ID", "Exit status:", "admin.sock"]
    {
        assert!(help.contains(part), "{part}");
    }
}

#[test]
fn every_command_explains_itself() {
    let home = Home::fresh();
    for command in
        ["up", "init", "serve", "clone", "revert", "reclaim", "status", "cpu", "completions", "man"]
    {
        let help = home.run(&[command, "--help"]).ok();
        assert!(help.contains("--dir <DIR>") && help.contains("--json"), "{command}: {help}");
    }
    for command in ["create", "list", "show", "resize", "rename", "delete", "import", "export"] {
        let help = home.run(&["help", "volume", command]).ok();
        assert!(help.contains("--dir <DIR>"), "{command}: {help}");
    }
    for command in ["create", "list", "delete", "diff"] {
        let help = home.run(&["help", "snapshot", command]).ok();
        assert!(help.contains("--dir <DIR>"), "{command}: {help}");
    }
}

#[test]
fn reclaim_says_what_comes_back_and_when() {
    let help = Home::fresh().run(&["help", "reclaim"]).ok();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "nothing points at any more",
        "overwritten or discarded",
        "deleted volumes and snapshots",
        "by itself every so often",
        "written together anew",
        "not everything dead comes back at once",
        "changes nothing",
    ] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

#[test]
fn wrong_usage_exits_with_two_and_says_what_is_wrong() {
    let home = Home::fresh();
    for (arguments, word) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["status", "--frobnicate"], "--frobnicate"),
        (&["volume", "create", "a"], "SIZE"),
        (&["volume", "create", "a", "lots"], "lots"),
        (&["volume", "create", "a", "1GiB", "--durability", "never"], "never"),
        (&["node", "add", "-name", "file:///x"], "-n"),
        (&["node", "add", "a/b", "file:///x"], "a/b"),
        (&["serve", "--nbd", "nowhere"], "nowhere"),
        (&["up", "--nbd", "host:99999"], "host:99999"),
        (&["volume", "create", "a/b", "1GiB"], "a/b"),
        (&["domain", "create", "a/b"], "a/b"),
        (&["key", "export"], "FILE"),
        (&["key", "passphrase", "--remove", "--new-file", "x"], "--new-file"),
        (&["volume", "rename", "a", "b/c"], "b/c"),
        (&["volume", "create", "a", "0"], "empty"),
        (&["volume", "resize", "a", "513"], "multiple"),
        (&["volume", "create", "a", "65TiB"], "largest"),
        (&["node", "add", "a", "ftp://x"], "URL"),
        (&["up", "--pool", "ftp://x"], "--pool"),
        (&["init", "--catalog", "postgres://x"], "--catalog"),
        (&["cpu", "40%"], "insane"),
        (&["snapshot", "create"], "VOL[@NAME]"),
        (&["snapshot", "create", "a@"], "empty"),
        (&["snapshot", "create", "@b"], "empty"),
        (&["snapshot", "create", "a@b@c"], "'@'"),
        (&["snapshot", "create", "a@b/c"], "'/'"),
        (&["snapshot", "list", "a@b"], "'@'"),
        (&["snapshot", "delete", "a"], "VOLUME@SNAPSHOT"),
        (&["snapshot", "delete", "a@b@c"], "'@'"),
        (&["snapshot", "diff", "a@b"], "VOL@B"),
        (&["snapshot", "diff", "a@b", "a"], "VOLUME@SNAPSHOT"),
        (&["snapshot", "diff", "a@b", "c@b"], "two volumes"),
        (&["clone", "a", "b"], "VOLUME@SNAPSHOT"),
        (&["clone", "a@b"], "NEW"),
        (&["clone", "a@b", "c@d"], "'@'"),
        (&["revert", "a"], "VOLUME@SNAPSHOT"),
        (&["revert", "@b"], "empty"),
        (&["reclaim", "now"], "now"),
        (&["reclaim", "--dry"], "--dry-run"),
        (&["volume", "import", "a@b", "x.raw"], "cannot be written"),
        (&["volume", "export", "a@", "x.raw"], "empty"),
        (&["volume", "create", "a@b", "1GiB"], "'@'"),
        (&["snapshot"], "Usage"),
        (&["volume"], "Usage"),
        (&[], "Usage"),
        (&["completions", "tcl"], "tcl"),
    ] {
        let said = home.run(arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(word), "{arguments:?}: {said:?}");
    }
}

#[test]
fn the_version_is_told() {
    assert_eq!(Home::fresh().run(&["--version"]).ok(), format!("cairn {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_are_written_for_every_shell() {
    let home = Home::fresh();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.run(&["completions", shell]).ok();
        assert!(script.contains("cairn") && script.contains("import"), "{shell}");
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let home = Home::fresh();
    let out = home.folder().join("man");
    home.run(&["man", "--out", out.to_str().unwrap()]).ok();
    for page in [
        "cairn.1",
        "cairn-up.1",
        "cairn-volume.1",
        "cairn-volume-import.1",
        "cairn-snapshot-diff.1",
        "cairn-clone.1",
        "cairn-revert.1",
        "cairn-reclaim.1",
        "cairn-key-rotate.1",
    ] {
        let text = std::fs::read_to_string(out.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.starts_with(".ie") && text.contains(".SH NAME"), "{page}");
    }
}

#[test]
fn the_directory_and_json_are_accepted_anywhere_on_the_line() {
    let home = Home::ready();
    let directory = home.directory();
    let directory = directory.to_str().unwrap();
    for arguments in [
        &["--dir", directory, "--json", "volume", "list"][..],
        &["volume", "--dir", directory, "list", "--json"],
        &["volume", "--json", "list", "--dir", directory],
    ] {
        let mut command = home.command(arguments);
        let output = command.env_remove("CAIRN_DIR").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "[]\n", "{arguments:?}: {output:?}");
    }
}
