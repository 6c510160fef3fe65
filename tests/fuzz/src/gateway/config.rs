//! `cairn.toml`.
//!
//! What must hold: what is accepted is inside the documented ranges; no message repeats a secret, wherever in the file it is, and nothing
//! prints it.

use crate::{Seeds, lie, memory};
use cairn_gateway::config::{Config, ListenAddress, UNIX_PATH_BYTES_MAX};
use cairn_gateway::fuzzing::config;
use std::time::Duration;

const SECRET: &str = "Zq7-hush-4711";

pub(crate) fn run(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |&byte| byte == 0);
    let (before, inside, after) = (parts.next(), parts.next(), parts.next());
    let Some(inside) = inside else {
        if let Ok(config) = parse(bytes) {
            check(&config);
        }
        return;
    };
    let parts = [before, Some(inside), after].map(|part| std::str::from_utf8(part.unwrap_or_default()));
    let [Ok(before), Ok(inside), Ok(after)] = parts else { return };
    // The secret is a secret only where a value begins: not in the middle of a text, a comment or a name.
    if before.parse::<toml::Table>().is_err() {
        return;
    }
    for key in ["secret_access_key", "session_token"] {
        let text = format!("{before}\n{key} = \"{SECRET}{inside}\"\n{after}");
        let told = match parse(text.as_bytes()) {
            Ok(config) => {
                check(&config);
                format!("{config:?}")
            }
            Err(message) => message,
        };
        assert!(!told.contains(SECRET) && !lie::told(), "a secret is told: {told}");
    }
}

/// A level may hold regular expressions, which are compiled.
fn parse(text: &[u8]) -> Result<Config, String> {
    memory::bounded(256 * text.len() + (16 << 20), || config(text))
}

fn check(config: &Config) {
    let mib = 1 << 20;
    let capacity = config.wal.capacity_bytes;
    assert!((64 * mib..=4 << 40).contains(&capacity), "{config:?}");
    let memory = &config.memory;
    for bytes in [memory.write_buffer_bytes, memory.block_cache_bytes, memory.map_cache_bytes] {
        assert!((16 * mib..=1 << 40).contains(&bytes), "{config:?}");
    }
    let destage = &config.destage;
    assert!(
        (mib..=1 << 30).contains(&destage.batch_bytes) && destage.batch_bytes <= capacity / 4,
        "{config:?}"
    );
    assert!(
        (Duration::from_millis(100)..=Duration::from_hours(1)).contains(&destage.batch_age),
        "{config:?}"
    );
    assert!(config.gateway.admin.is_none_or(|address| address.ip().is_loopback()), "{config:?}");
    assert!(!config.gateway.nbd.is_empty(), "{config:?}");
    for address in &config.gateway.nbd {
        if let ListenAddress::Unix(path) = address {
            assert!(path.is_absolute() && path.as_os_str().len() <= UNIX_PATH_BYTES_MAX, "{config:?}");
        }
    }
    assert!(config.wal.path.is_absolute(), "{config:?}");
}

pub(crate) fn seeds() -> Seeds {
    let template = cairn_gateway::config::template(None);
    // The template's keys are comments that say the defaults.
    let set: String = template
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap_or(line))
        .fold(String::new(), |text, line| text + line + "\n");
    let every = "[gateway]\nnbd = [\"127.0.0.1:0\", \"unix:n.sock\", \"[::1]:1\"]\nadmin = \"127.0.0.1:10810\"\n\
        [gateway.tls]\ncert = \"c\"\nkey = \"k\"\nclient_ca = \"a\"\nrequired = false\n[catalog]\nurl = \"sqlite:c.db\"\n\
        [wal]\ncapacity = \"1.5GiB\"\npath = \"w\"\n[memory]\nwrite_buffer = \"16MiB\"\nblock_cache = \"64M\"\n\
        map_cache = \"1T\"\n[destage]\nbatch_bytes = \"1MiB\"\nbatch_age = \"250ms\"\n[log]\nformat = \"json\"\n\
        level = \"info,cairn_engine=debug\"\n";
    let pool =
        "[pool]\nurl = \"s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=r\"\naccess_key_id = \"A\"";
    vec![
        ("template".to_owned(), template.into_bytes()),
        ("template-set".to_owned(), set.into_bytes()),
        ("every-key".to_owned(), every.as_bytes().to_vec()),
        ("secret".to_owned(), format!("{pool}\0\0").into_bytes()),
        ("secret-unclosed".to_owned(), format!("{pool}\0\"x\0[log]").into_bytes()),
        ("secret-misplaced".to_owned(), b"[wal]\0\0".to_vec()),
        ("secret-in-a-table".to_owned(), b"[pool.secret_access_key]\0\0".to_vec()),
    ]
}
