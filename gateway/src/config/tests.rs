use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/cairn/cairn.toml"), Path::new("/cairn"))
}

/// What the error says of `text`.
fn refusal(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::defaults(Path::new("/cairn")));
    let addresses: Vec<String> = config.gateway.nbd.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["127.0.0.1:10809", "unix:/cairn/nbd.sock"]);
    assert_eq!(config.catalog, CatalogUrl::Sqlite("/cairn/catalog.db".into()));
    assert_eq!(config.wal, WalSection { capacity_bytes: 4 << 30, path: "/cairn/wal".into() });
    assert_eq!(
        config.pool,
        PoolConfig { url: None, checkpoint_interval: Duration::from_mins(10), credentials: None }
    );
}

#[test]
fn a_key_comes_from_a_file_or_a_command() {
    let file = KeyConfig::File { path: "/cairn/key".into(), passphrase_file: None };
    assert_eq!(parse("").unwrap().key, file);
    let command = |program: &str| KeyConfig::Command {
        program: program.to_owned(),
        arguments: vec!["a b".to_owned(), String::new()],
    };
    for (written, program) in [("tpm", "tpm"), ("/bin/tpm", "/bin/tpm"), ("./tpm", "/cairn/./tpm")] {
        let text = format!("[key]\ncommand = [\"{written}\", \"a b\", \"\"]");
        assert_eq!(parse(&text).unwrap().key, command(program));
    }
    for (text, word) in [
        ("path = \"\"", "name a file"),
        ("path = \"keys/\"", "name a file"),
        ("passphrase_file = \"\"", "name a file"),
        ("command = []", "names no program"),
        ("command = [\"\"]", "names no program"),
        ("command = [\"unseal key\"]", "one by one"),
        ("command = \"unseal key\"", "sequence"),
        ("command = [\"tpm\"]\npath = \"key\"", "beside"),
        ("command = [\"tpm\"]\npassphrase_file = \"p\"", "beside"),
        ("passphrase = \"hush\"", "passphrase"),
    ] {
        let refused = refusal(&format!("[key]\n{text}\n"));
        assert!(refused.contains(word) && !refused.contains("hush"), "{text}: {refused}");
    }
}

#[expect(clippy::too_many_lines, reason = "one line for each key")]
#[test]
fn every_key_is_taken() {
    let config = parse(
        r#"
        [gateway]
        nbd = ["0.0.0.0:10809", "unix:/run/nbd.sock"]
        admin = "127.0.0.1:10810"
        [gateway.tls]
        cert = "server.pem"
        key = "/etc/server.key"
        client_ca = "clients.pem"
        required = false
        [catalog]
        url = "sqlite:/var/catalog.db"
        [key]
        path = "/mnt/stick/key"
        passphrase_file = "passphrase"
        [wal]
        capacity = "8GiB"
        path = "/nvme/wal"
        [memory]
        write_buffer = "1GiB"
        block_cache = "2GiB"
        map_cache = "64MiB"
        [flash]
        size = "1GiB"
        path = "/nvme/flash"
        [dedupe]
        path = "/nvme/index"
        memory = "16MiB"
        index = "1GiB"
        [destage]
        batch_bytes = "32MiB"
        batch_age = "1500ms"
        [reclaim]
        interval = "36h"
        dead_percent = 35
        [cpu]
        budget = "insane"
        [pool]
        url = "s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=eu"
        access_key_id = "id"
        secret_access_key = "hush"
        session_token = "token"
        [log]
        format = "json"
        level = "warn,cairn_engine=debug"
        "#,
    )
    .unwrap();
    let key =
        KeyConfig::File { path: "/mnt/stick/key".into(), passphrase_file: Some("/cairn/passphrase".into()) };
    assert_eq!(config.key, key);
    let tls = config.gateway.tls.unwrap();
    assert_eq!((tls.cert, tls.key), ("/cairn/server.pem".into(), "/etc/server.key".into()));
    assert_eq!((tls.client_ca, tls.required), (Some("/cairn/clients.pem".into()), false));
    assert_eq!(config.gateway.admin, Some("127.0.0.1:10810".parse().unwrap()));
    assert_eq!(config.catalog, CatalogUrl::Sqlite("/var/catalog.db".into()));
    assert_eq!(config.wal, WalSection { capacity_bytes: 8 << 30, path: "/nvme/wal".into() });
    let memory = (config.memory.write_buffer_bytes, config.memory.block_cache_bytes);
    assert_eq!((memory, config.memory.map_cache_bytes), ((1 << 30, 2 << 30), 64 << 20));
    assert_eq!(config.flash, FlashSection { size_bytes: 1 << 30, path: "/nvme/flash".into() });
    let dedupe = DedupeSection { path: "/nvme/index".into(), memory_bytes: 16 << 20, index_bytes: 1 << 30 };
    assert_eq!(config.dedupe, dedupe);
    let destage = DestageConfig { batch_bytes: 32 << 20, batch_age: Duration::from_millis(1500) };
    assert_eq!(config.destage, destage);
    let reclaim = ReclaimConfig { interval: Some(Duration::from_hours(36)), dead_percent: 35 };
    assert_eq!((config.reclaim, config.cpu.budget), (reclaim, CpuBudget::Insane));
    assert_eq!(config.pool.credentials.unwrap().secret_access_key.expose(), "hush");
    assert_eq!(
        config.log,
        LogConfig { format: LogFormat::Json, level: "warn,cairn_engine=debug".to_owned() }
    );
}

#[test]
fn an_unknown_key_or_section_is_named_with_its_line() {
    for (text, line, name) in [
        ("[wal]\ncapacty = \"1GiB\"", 2, "`capacty`"),
        ("\n\n[pools]\nurl = \"x\"", 3, "`pools`"),
        ("[gateway.tls]\ncertificate = \"x\"", 2, "`certificate`"),
        ("colour = true", 1, "`colour`"),
    ] {
        let message = refusal(text);
        assert!(message.starts_with(&format!("/cairn/cairn.toml, line {line}:")), "{message}");
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn an_impossible_value_is_named_by_its_key() {
    for (text, key, words) in [
        ("[wal]\ncapacity = \"1MiB\"", "wal.capacity", "at least 64MiB"),
        ("[wal]\ncapacity = \"5TiB\"", "wal.capacity", "at most 4TiB"),
        ("[wal]\ncapacity = \"lots\"", "wal.capacity", "not a size"),
        ("[wal]\npath = \"\"", "wal.path", "folder of its own"),
        ("[wal]\npath = \".\"", "wal.path", "folder of its own"),
        ("[memory]\nwrite_buffer = \"1MiB\"", "memory.write_buffer", "at least 16MiB"),
        ("[memory]\nblock_cache = \"-1\"", "memory.block_cache", "not a size"),
        ("[memory]\nmap_cache = \"2TiB\"", "memory.map_cache", "at most 1TiB"),
        ("[flash]\nsize = \"1MiB\"", "flash.size", "or 0 for no"),
        ("[flash]\npath = \"/\"", "flash.path", "folder of its own"),
        ("[flash]\npath = \"wal\"", "flash.path", "`wal.path`"),
        ("[dedupe]\npath = \"flash/index\"", "dedupe.path", "`flash.path`"),
        ("[destage]\nbatch_bytes = \"1GiB\"", "destage.batch_bytes", "at most 480MiB"),
        ("[dedupe]\npath = \"..\"", "dedupe.path", "folder of its own"),
        ("[dedupe]\nmemory = \"1K\"", "dedupe.memory", "at least 4MiB"),
        ("[dedupe]\nindex = \"1MiB\"", "dedupe.index", "at least 64MiB"),
        ("[destage]\nbatch_bytes = \"1K\"", "destage.batch_bytes", "at least 1MiB"),
        ("[destage]\nbatch_age = \"5\"", "destage.batch_age", "not a duration"),
        ("[destage]\nbatch_age = \"1ms\"", "destage.batch_age", "at least 100ms"),
        ("[destage]\nbatch_age = \"2h\"", "destage.batch_age", "at most 1h"),
        ("[pool]\ncheckpoint_interval = \"25h\"", "pool.checkpoint_interval", "at most 24h"),
        ("[reclaim]\ninterval = \"999ms\"", "reclaim.interval", "at least 1s"),
        ("[reclaim]\ninterval = \"721h\"", "reclaim.interval", "30 days"),
        ("[reclaim]\ninterval = \"0s\"", "reclaim.interval", "or off"),
        ("[reclaim]\ninterval = \"never\"", "reclaim.interval", "or off"),
        ("[heal]\nbandwidth = \"10K\"", "heal.bandwidth", "at least 1MiB"),
        ("[heal]\nnode_failed_after = \"1s\"", "heal.node_failed_after", "or off for never"),
        ("[heal]\nscrub_period = \"soon\"", "heal.scrub_period", "or off for only when asked"),
        ("[reclaim]\ndead_percent = 4", "reclaim.dead_percent", "at least 5"),
        ("[reclaim]\ndead_percent = 101", "reclaim.dead_percent", "never"),
        ("[cpu]\nbudget = \"40%\"", "cpu.budget", "normal, insane or unlimited"),
        ("[gateway]\nnbd = []", "gateway.nbd", "empty"),
        ("[gateway]\nnbd = [\"nowhere\"]", "gateway.nbd", "no address"),
        ("[gateway]\nnbd = [\"a:1\", \"a:1\"]", "gateway.nbd", "twice"),
        ("[gateway]\nadmin = \"localhost\"", "gateway.admin", "IP:PORT"),
        ("[gateway]\nadmin = \"0.0.0.0:1\"", "gateway.admin", "loopback"),
        ("[gateway.tls]\nkey = \"k\"", "gateway.tls.cert", "missing"),
        ("[gateway.tls]\ncert = \"c\"", "gateway.tls.key", "missing"),
        ("[catalog]\nurl = \"mysql:x\"", "catalog.url", "sqlite:PATH"),
        ("[catalog]\nurl = \"sqlite:\"", "catalog.url", "sqlite:PATH"),
        ("[catalog]\nurl = \"sqlite:a?mode=ro\"", "catalog.url", "without options"),
        ("[catalog]\nurl = \"postgres://h/d\"", "catalog.url", "PostgreSQL"),
        ("[pool]\nurl = \"ftp://h\"", "pool.url", "unknown scheme"),
        ("[pool]\naccess_key_id = \"id\"", "pool.secret_access_key", "missing"),
        ("[pool]\nsecret_access_key = \"s\"", "pool.access_key_id", "missing"),
        ("[log]\nformat = \"xml\"", "log.format", "human or json"),
        ("[log]\nlevel = \"loud\"", "log.level", "`loud` is no level"),
        ("[log]\nlevel = \"info,cairn_nbd=loud\"", "log.level", "is `info,cairn_nbd=loud`"),
    ] {
        let message = refusal(text);
        assert!(message.contains(&format!("`{key}` ")), "{message}");
        assert!(message.contains(words), "{message} lacks {words:?}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    for text in [
        "[wal]\ncapacity = 5",
        "[gateway]\nnbd = \"127.0.0.1:1\"",
        "[gateway.tls]\nrequired = \"yes\"",
        "wal = 1",
    ] {
        assert!(matches!(parse(text), Err(ConfigError::Syntax { .. })), "{text}");
    }
}

#[test]
fn healing_has_limits_or_none() {
    let heal = parse(
        "[heal]\nbandwidth = \"off\"\nnode_failed_after = \"off\"\nscrub_period = \"off\"\nreuse_wiped_nodes = false",
    );
    let none = HealConfig {
        bytes_per_second: None,
        node_failed_after: None,
        reuse_wiped_nodes: false,
        scrub_period: None,
    };
    assert_eq!(heal.unwrap().heal, none);
    let heal = parse("[heal]\nbandwidth = \"1GiB\"\nnode_failed_after = \"30s\"\nscrub_period = \"48h\"")
        .unwrap()
        .heal;
    assert_eq!((heal.bytes_per_second, heal.reuse_wiped_nodes), (Some(1 << 30), true));
    let spans = (heal.node_failed_after, heal.scrub_period);
    assert_eq!(spans, (Some(Duration::from_secs(30)), Some(Duration::from_hours(48))));
}

#[test]
fn reclaim_runs_every_so_often_or_only_when_asked() {
    let interval = |text: &str| parse(&format!("[reclaim]\n{text}")).unwrap().reclaim.interval;
    assert_eq!(interval(""), Some(Duration::from_mins(10)));
    assert_eq!(interval("interval = \"off\""), None);
    for (text, duration) in [("1s", Duration::from_secs(1)), ("720h", Duration::from_hours(720))] {
        assert_eq!(interval(&format!("interval = \"{text}\"")), Some(duration));
    }
}

#[test]
fn batches_must_fit_the_log() {
    let message = refusal("[wal]\ncapacity = \"128MiB\"\n[destage]\nbatch_bytes = \"64MiB\"");
    assert!(message.contains("at most 32MiB"), "{message}");
    let small = parse("[wal]\ncapacity = \"128MiB\"").unwrap();
    assert_eq!(small.destage.batch_bytes, 32 << 20);
}

#[test]
fn a_socket_path_too_long_is_refused_when_asked_for_and_left_out_by_default() {
    let deep = PathBuf::from("/").join("d".repeat(120));
    let asked = Config::parse("[gateway]\nnbd = [\"unix:nbd.sock\"]", Path::new("cairn.toml"), &deep);
    assert!(asked.unwrap_err().to_string().contains("at most 107"));
    assert_eq!(Config::defaults(&deep).gateway.nbd, [ListenAddress::parse("127.0.0.1:10809").unwrap()]);
}

#[test]
fn secrets_show_neither_in_debug_output_nor_in_errors() {
    let text = "[pool]\naccess_key_id = \"id\"\nsecret_access_key = \"hush\"\nsession_token = \"hushed\"\n";
    let shown = format!("{:?}", parse(text).unwrap());
    assert!(!shown.contains("hush"), "{shown}");
    let message = refusal(&format!("{text}secret_acess_key = \"hush\"\n"));
    assert!(message.contains("`secret_acess_key`") && !message.contains("hush"), "{message}");
    let unterminated = refusal("[pool]\nsecret_access_key = \"hush\n");
    assert!(!unterminated.contains("hush"), "{unterminated}");
}

#[test]
fn a_missing_or_huge_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cairn.toml");
    assert!(matches!(Config::load(&path, folder.path()), Err(ConfigError::Read { .. })));
    std::fs::write(&path, vec![b'#'; usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1]).unwrap();
    assert!(matches!(Config::load(&path, folder.path()), Err(ConfigError::TooLong { .. })));
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(\\[(wal|pool|gateway|memory)\\]\n)?[a-z_]{0,12} ?= ?.{0,40}") {
        let _ = parse(&text);
    }
}
