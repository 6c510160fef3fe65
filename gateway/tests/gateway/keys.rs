//! `cairn key` and `cairn domain`, as a user runs them.

use crate::support::{Home, SMALL, noise, same_content};
use cairn_gateway::key::{Cost, KeyFile, Origin, Passphrase, SealedKey, file};
use cairn_model::OsEntropy;
use cairn_model::crypto::SecretKey;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const WORDS: &str = "correct horse battery staple";

fn private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn words_file(home: &Home, words: &str) -> PathBuf {
    let path = home.folder().join(format!("words-{}", words.len()));
    private(&path, &format!("{words}\n"));
    path
}

fn plain_key(path: &Path) -> SecretKey {
    match file::load(path).unwrap() {
        KeyFile::Plain(key) => key,
        KeyFile::Sealed(_) => panic!("it needs a passphrase"),
    }
}

/// Puts the key under a passphrase that is quick to try.
fn seal_cheaply(home: &Home, words: &str) {
    let key = plain_key(&home.path("key"));
    let words = Passphrase::from_line(words.as_bytes()).unwrap();
    let sealed = SealedKey::seal(&key, &words, Cost::LEAST, &OsEntropy).unwrap();
    private(&home.path("key"), &sealed.to_string());
}

fn configure(home: &Home, section: &str) {
    std::fs::write(home.path("cairn.toml"), format!("{SMALL}{section}")).unwrap();
}

#[test]
fn the_ids_of_all_keys_are_shown_and_no_key() {
    let home = Home::ready();
    let key = plain_key(&home.path("key"));
    let shown = home.run(&["key", "show", "--json"]).json();
    assert_eq!(shown["source"], "file");
    assert_eq!(shown["id"], key.id().to_string());
    assert_eq!(shown["given_id"], key.id().to_string());
    assert_eq!(shown["domains"][0]["name"], "default");
    assert_eq!(shown["domains"][0]["encryption"], "aes-256-gcm");
    let text = home.run(&["key", "show"]).ok();
    for part in [&key.id().to_string(), "default", "aes-256-gcm", "master key"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains(&hex::encode(key.expose())[..16]));
}

#[test]
fn the_key_is_rotated_while_the_gateway_serves_and_the_data_stays() {
    let home = Home::ready();
    let image = home.folder().join("image");
    std::fs::write(&image, noise(1, 1 << 20)).unwrap();
    home.run(&["volume", "import", "data", image.to_str().unwrap()]).ok();
    let old = std::fs::read(home.path("key")).unwrap();
    let before = home.run(&["key", "show", "--json"]).json();
    let gateway = home.serve();
    let rotated = home.run(&["key", "rotate", "--json"]).json();
    assert_ne!(rotated["id"], before["id"]);
    assert_eq!(rotated["domains"][0]["key_id"], before["domains"][0]["key_id"]);
    assert_eq!(rotated["copies"][0], serde_json::json!({ "node": "local" }));
    let digits = hex::encode(plain_key(&home.path("key")).expose());
    assert!(!gateway.log().contains(&digits));
    // What is wrapped after it is wrapped with the new key.
    home.run(&["domain", "create", "tenant"]).ok();
    home.run(&["volume", "create", "more", "1MiB"]).ok();
    assert_eq!(gateway.stop(), Some(0));
    let copy = home.folder().join("copy");
    home.run(&["volume", "export", "data", copy.to_str().unwrap()]).ok();
    assert!(same_content(&image, &copy));
    let shown = home.run(&["key", "show", "--json"]).json();
    assert_eq!(shown["id"], rotated["id"]);
    // The old key is recognised, and both are named.
    std::fs::write(home.path("key"), old).unwrap();
    let refused = home.run(&["serve"]).failed();
    assert!(refused.contains("not the key of this site"), "{refused}");
    for id in [&before["id"], &rotated["id"]] {
        assert!(refused.contains(id.as_str().unwrap()), "{refused}");
    }
    let shown = home.run(&["key", "show", "--json"]).json();
    assert!(shown["problem"].as_str().unwrap().contains("not the key of this site"), "{shown}");
}

#[test]
fn keys_of_two_sites_exchanged_are_named() {
    let (one, other) = (Home::ready(), Home::ready());
    let (key_of_one, key_of_other) = (plain_key(&one.path("key")).id(), plain_key(&other.path("key")).id());
    std::fs::copy(other.path("key"), one.path("key")).unwrap();
    let refused = one.run(&["volume", "create", "a", "1MiB"]).failed();
    assert!(
        refused.contains(&key_of_one.to_string()) && refused.contains(&key_of_other.to_string()),
        "{refused}"
    );
    for command in ["rotate", "passphrase"] {
        let words = words_file(&one, WORDS);
        let mut arguments = vec!["key", command];
        if command == "passphrase" {
            arguments.extend(["--new-file", words.to_str().unwrap()]);
        }
        assert!(one.run(&arguments).failed().contains("not the key of this site"), "{command}");
    }
    let copy = one.folder().join("copy");
    assert!(one.run(&["key", "export", copy.to_str().unwrap()]).failed().contains("not the key"));
    assert!(!copy.exists());
}

#[test]
fn a_recovery_copy_is_private_and_takes_the_place_of_a_lost_key() {
    let home = Home::ready();
    let copy = home.folder().join("copy");
    let name = copy.to_str().unwrap();
    let exported = home.run(&["key", "export", name, "--json"]).json();
    assert_eq!(exported["passphrase"], false);
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(same_content(&copy, &home.path("key")));
    assert!(home.run(&["key", "export", name]).failed().contains("exists already"));
    let reserved = home.path(".key-replacement");
    assert!(home.run(&["key", "export", reserved.to_str().unwrap()]).failed().contains("another name"));
    assert!(!reserved.exists());
    std::fs::remove_file(home.path("key")).unwrap();
    std::fs::copy(&copy, home.path("key")).unwrap();
    home.run(&["volume", "create", "a", "1MiB"]).ok();
}

#[test]
fn a_recovery_copy_may_need_a_passphrase() {
    let home = Home::ready();
    let (copy, words) = (home.folder().join("copy"), words_file(&home, WORDS));
    let gateway = home.serve();
    let arguments = ["key", "export", copy.to_str().unwrap(), "--passphrase-file", words.to_str().unwrap()];
    home.run(&arguments).ok();
    drop(gateway);
    let KeyFile::Sealed(sealed) = file::load(&copy).unwrap() else { panic!("it needs no passphrase") };
    let opened = sealed.open(&Passphrase::from_line(WORDS.as_bytes()).unwrap()).unwrap().unwrap();
    assert_eq!(opened.expose(), plain_key(&home.path("key")).expose());
}

#[test]
fn a_passphrase_comes_from_a_file_that_the_environment_the_configuration_or_systemd_names() {
    let home = Home::ready();
    seal_cheaply(&home, WORDS);
    let words = words_file(&home, WORDS);
    let refused = home.run(&["volume", "create", "a", "1MiB"]).failed();
    assert!(refused.contains("no terminal") && refused.contains("CAIRN_PASSPHRASE_FILE"), "{refused}");
    // What only tells needs none.
    assert_eq!(home.run(&["key", "show", "--json"]).json()["source"], "passphrase");
    home.run(&["volume", "list"]).ok();
    let output = home
        .command(&["volume", "create", "a", "1MiB"])
        .env("CAIRN_PASSPHRASE_FILE", &words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let credentials = home.folder().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::copy(&words, credentials.join("cairn-passphrase")).unwrap();
    let output = home
        .command(&["volume", "create", "b", "1MiB"])
        .env("CREDENTIALS_DIRECTORY", &credentials)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    configure(&home, &format!("[key]\npassphrase_file = {:?}\n", words.to_str().unwrap()));
    home.run(&["volume", "create", "c", "1MiB"]).ok();
    assert_eq!(home.serve().stop(), Some(0));
}

#[test]
fn a_wrong_passphrase_is_told_and_nothing_more() {
    let home = Home::ready();
    seal_cheaply(&home, WORDS);
    let wrong = words_file(&home, "correct horse battery stable");
    configure(&home, &format!("[key]\npassphrase_file = {:?}\n", wrong.to_str().unwrap()));
    let refused = home.run(&["serve"]).failed();
    assert!(refused.contains("the passphrase does not open"), "{refused}");
    assert!(!refused.contains("stable") && !refused.contains("staple"), "{refused}");
    let text = std::fs::read_to_string(home.path("key")).unwrap();
    private(&home.path("key"), &text[..text.len() - 30]);
    assert!(home.run(&["serve"]).failed().contains("not a Cairn key"));
    private(&wrong, "");
    private(&home.path("key"), &text);
    assert!(home.run(&["serve"]).failed().contains("empty"));
    std::fs::set_permissions(&wrong, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(home.run(&["serve"]).failed().contains("chmod 600"));
}

#[test]
fn a_key_file_that_asks_for_too_much_work_is_refused_at_once() {
    let home = Home::ready();
    seal_cheaply(&home, WORDS);
    let text = std::fs::read_to_string(home.path("key")).unwrap();
    private(&home.path("key"), &text.replace("m=8192", "m=4294967295"));
    let words = words_file(&home, WORDS);
    configure(&home, &format!("[key]\npassphrase_file = {:?}\n", words.to_str().unwrap()));
    assert!(home.run(&["serve"]).failed().contains("more work"));
}

#[test]
fn a_passphrase_is_set_changed_and_removed() {
    let home = Home::ready();
    let (first, second) = (words_file(&home, WORDS), words_file(&home, "another passphrase"));
    let id = home.run(&["key", "show", "--json"]).json()["id"].clone();
    let gateway = home.serve();
    let set = home.run(&["key", "passphrase", "--new-file", first.to_str().unwrap(), "--json"]).json();
    assert_eq!((&set["source"], &set["id"]), (&"passphrase".into(), &id));
    assert_eq!(gateway.stop(), Some(0));
    assert!(std::fs::read_to_string(home.path("key")).unwrap().starts_with("cairn-key-2\n"));
    let published = std::fs::read_to_string(home.path("pool/cairn-keys")).unwrap();
    assert!(published.contains("cairn-key-2"), "{published}");
    let with = |words: &Path, arguments: &[&str]| {
        let output = home.command(arguments).env("CAIRN_PASSPHRASE_FILE", words).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let short = home.folder().join("short");
    private(&short, "short\n");
    let (done, said) = with(&first, &["key", "passphrase", "--new-file", short.to_str().unwrap()]);
    assert!(!done && said.contains("fewer than 8"), "{said}");
    let (done, said) = with(&first, &["key", "passphrase", "--new-file", second.to_str().unwrap()]);
    assert!(done, "{said}");
    // What the next start would read is not the new one.
    assert!(said.contains("WILL FAIL") && said.contains(first.to_str().unwrap()), "{said}");
    let (done, said) = with(&first, &["key", "passphrase", "--remove"]);
    assert!(!done && said.contains("does not open"), "{said}");
    assert!(said.contains(first.to_str().unwrap()) && said.contains("CAIRN_PASSPHRASE_FILE"), "{said}");
    let (done, said) = with(&second, &["key", "passphrase", "--new-file", second.to_str().unwrap()]);
    assert!(done && !said.contains("WILL FAIL"), "{said}");
    let (done, said) = with(&second, &["key", "rotate"]);
    assert!(done, "{said}");
    let (done, said) = with(&second, &["key", "passphrase", "--remove"]);
    assert!(done, "{said}");
    assert!(std::fs::read_to_string(home.path("key")).unwrap().starts_with("cairn-key-1\n"));
    assert!(!std::fs::read_to_string(home.path("pool/cairn-keys")).unwrap().contains("cairn-key-2"));
    assert!(home.run(&["key", "passphrase", "--remove"]).failed().contains("has no passphrase"));
    assert!(home.run(&["key", "passphrase"]).failed().contains("no terminal"));
    home.run(&["volume", "create", "a", "1MiB"]).ok();
}

/// Runs a command on a terminal; answers each question when it is asked. What the terminal showed, and whether it succeeded.
fn on_a_terminal(home: &Home, line: &str, answers: &[(&str, &str)]) -> (String, bool) {
    let program = env!("CARGO_BIN_EXE_cairn");
    let mut child = Command::new("script")
        .args(["-qefc", &format!("{program} {line}"), "/dev/null"])
        .env("CAIRN_DIR", home.directory())
        .current_dir(home.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is needed by this test");
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut shown = Vec::new();
    let mut seen = 0;
    for (question, answer) in answers {
        let mut byte = [0];
        while !String::from_utf8_lossy(&shown[seen..]).contains(question) {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "{question}: {}", String::from_utf8_lossy(&shown));
            shown.push(byte[0]);
        }
        seen = shown.len();
        input.write_all(answer.as_bytes()).unwrap();
        input.flush().unwrap();
    }
    output.read_to_end(&mut shown).unwrap();
    drop(input);
    let done = child.wait().unwrap().success();
    (String::from_utf8_lossy(&shown).into_owned(), done)
}

#[test]
fn a_passphrase_is_asked_for_on_a_terminal_and_not_shown() {
    let home = Home::ready();
    seal_cheaply(&home, WORDS);
    let typed = "correct horse batterz\x7fy staple\n";
    let (shown, done) = on_a_terminal(&home, "volume create a 1MiB", &[("Passphrase of", typed)]);
    assert!(done, "{shown}");
    assert!(!shown.contains("horse"), "{shown}");
    let (shown, done) = on_a_terminal(&home, "volume create b 1MiB", &[("Passphrase of", "wrong\n")]);
    assert!(!done && shown.contains("does not open"), "{shown}");
    let (shown, done) = on_a_terminal(&home, "volume create b 1MiB", &[("Passphrase of", "corr\x03")]);
    assert!(!done && shown.contains("no passphrase was given"), "{shown}");
}

#[test]
fn a_new_passphrase_is_asked_for_twice() {
    let home = Home::ready();
    let question = "New passphrase: ";
    let answers = [(question, "correct horse\n"), ("again: ", "correct house\n")];
    let (shown, done) = on_a_terminal(&home, "key passphrase", &answers);
    assert!(!done && shown.contains("another"), "{shown}");
    let answers = [(question, "correct horse\n"), ("again: ", "correct horse\n")];
    let (shown, done) = on_a_terminal(&home, "key passphrase", &answers);
    assert!(done && !shown.contains("correct"), "{shown}");
    assert!(matches!(file::load(&home.path("key")).unwrap(), KeyFile::Sealed(_)));
}

#[test]
fn a_first_run_with_a_passphrase_configured_makes_a_key_that_needs_it() {
    let home = Home::fresh();
    let words = words_file(&home, WORDS);
    configure(
        &home,
        &format!("[key]\npath = \"../the-key\"\npassphrase_file = {:?}\n", words.to_str().unwrap()),
    );
    let made = home.run(&["init", "--json"]).json();
    assert!(made["key"].as_str().unwrap().ends_with("the-key"), "{made}");
    assert!(std::fs::read_to_string(home.folder().join("the-key")).unwrap().starts_with("cairn-key-2\n"));
    assert!(!home.path("key").exists());
}

#[test]
fn a_command_may_tell_the_key() {
    let home = Home::fresh();
    let (store, key) = (home.folder().join("kms"), SecretKey::random(&OsEntropy));
    private(&store, &KeyFile::Plain(key.clone()).text());
    let command = |words: &str| format!("[key]\ncommand = [{words}]\n");
    configure(&home, &command(&format!("\"cat\", {:?}", store.to_str().unwrap())));
    home.run(&["init"]).ok();
    assert!(!home.path("key").exists());
    let gateway = home.serve();
    let shown = home.run(&["key", "show", "--json"]).json();
    assert_eq!((&shown["source"], &shown["id"]), (&"command".into(), &key.id().to_string().into()));
    let words = words_file(&home, WORDS);
    let refused = home.run(&["key", "rotate"]).failed();
    assert!(refused.contains("cairn key export"), "{refused}");
    let refused = home.run(&["key", "passphrase", "--new-file", words.to_str().unwrap()]).failed();
    assert!(refused.contains("where the command gets it"), "{refused}");
    home.run(&["domain", "create", "tenant"]).ok();
    assert_eq!(gateway.stop(), Some(0));
    let copy = home.folder().join("copy");
    home.run(&["key", "export", copy.to_str().unwrap()]).ok();
    assert!(same_content(&store, &copy));
    configure(&home, &command("\"sh\", \"-c\", \"echo the token is locked >&2; exit 7\""));
    let refused = home.run(&["serve"]).failed();
    assert!(refused.contains("exit status: 7") && refused.contains("the token is locked"), "{refused}");
    configure(&home, &command("\"echo\", \"hello\""));
    assert!(home.run(&["serve"]).failed().contains("did not print a Cairn key"));
    configure(&home, &command("\"/nonexistent\""));
    assert!(home.run(&["serve"]).failed().contains("cannot run the key command"));
    // The way that the refusal of a rotation names.
    configure(&home, &format!("[key]\npath = {:?}\n", copy.to_str().unwrap()));
    let rotated = home.run(&["key", "rotate", "--json"]).json();
    std::fs::copy(&copy, &store).unwrap();
    configure(&home, &command(&format!("\"cat\", {:?}", store.to_str().unwrap())));
    assert_eq!(home.run(&["key", "show", "--json"]).json()["id"], rotated["id"]);
    home.run(&["volume", "create", "a", "1MiB"]).ok();
}

#[test]
fn domains_are_made_listed_and_deleted_with_and_without_a_gateway() {
    let home = Home::ready();
    let made = home.run(&["domain", "create", "tenant", "--json"]).json();
    assert_eq!(made["encryption"], "aes-256-gcm");
    let gateway = home.serve();
    let open = home.run(&["domain", "create", "public", "--no-encryption", "--json"]).json();
    assert_eq!(open["encryption"], "off");
    assert_ne!(open["key_id"], made["key_id"]);
    assert!(home.run(&["domain", "create", "public"]).failed().contains("public"));
    let list = home.run(&["domain", "list", "--json"]).json();
    let names: Vec<&str> =
        list.as_array().unwrap().iter().map(|domain| domain["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["default", "public", "tenant"]);
    assert!(home.run(&["domain", "show", "public"]).ok().contains("encryption  off"));
    assert!(home.run(&["domain", "show", "none"]).failed().contains("no domain named none"));
    assert!(home.run(&["domain", "delete", "default"]).failed().contains("every site has"));
    home.run(&["domain", "delete", "public"]).ok();
    assert_eq!(gateway.stop(), Some(0));
    assert!(home.run(&["domain", "delete", "public"]).failed().contains("no domain named public"));
    let published = std::fs::read_to_string(home.path("pool/cairn-keys")).unwrap();
    assert!(published.contains("\"tenant\"") && !published.contains("\"public\""), "{published}");
    let text = home.run(&["domain", "list"]).ok();
    assert!(text.contains("tenant") && text.contains("available"), "{text}");
}

#[test]
fn a_change_that_the_pool_does_not_have_says_what_to_keep() {
    let home = Home::ready();
    let pool = home.path("pool");
    // A file in the place of the staging area makes every put fail, for root too.
    let _ = std::fs::remove_dir_all(pool.join("staging"));
    std::fs::write(pool.join("staging"), "").unwrap();
    let advice = "until `cairn key publish` succeeds";
    let rotated = home.run(&["key", "rotate"]);
    assert!(rotated.stderr.contains("keep the old key") && rotated.stderr.contains(advice), "{rotated:?}");
    let text = rotated.ok();
    assert!(text.contains("backup") && text.contains("keep it as long as"), "{text}");
    let words = words_file(&home, WORDS);
    for arguments in [
        &["domain", "create", "tenant"][..],
        &["domain", "delete", "tenant"],
        &["key", "passphrase", "--new-file", words.to_str().unwrap()],
    ] {
        let said = home.run(arguments);
        assert!(said.stderr.contains(advice), "{arguments:?}: {said:?}");
        said.ok();
    }
}

#[test]
fn a_key_file_that_the_next_start_could_not_use_is_told_while_the_gateway_serves() {
    let home = Home::ready();
    let gateway = home.serve();
    let told = || home.run(&["status"]).ok();
    assert!(!told().contains("would not start again"));
    let (key, kept) = (home.path("key"), home.path("kept"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(told().contains("would not start again") && told().contains("chmod 600"), "{}", told());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&key, &kept).unwrap();
    assert!(told().contains("is missing"), "{}", told());
    file::create(&key, &KeyFile::Plain(SecretKey::random(&OsEntropy))).unwrap();
    assert!(told().contains("not the key of this site"), "{}", told());
    std::fs::rename(&kept, &key).unwrap();
    assert!(!told().contains("would not start again"));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn what_is_configured_is_told_without_the_key() {
    let home = Home::ready();
    std::fs::remove_file(home.path("key")).unwrap();
    assert!(home.run(&["cpu"]).ok().contains("normal"));
    assert!(home.run(&["cpu", "unlimited"]).failed().contains("is missing"));
}

#[test]
fn the_pool_s_copy_can_be_written_again_by_hand() {
    let home = Home::ready();
    let path = home.path("pool/cairn-keys");
    std::fs::remove_file(&path).unwrap();
    home.run(&["key", "publish"]).ok();
    assert!(path.exists());
    let key = plain_key(&home.path("key"));
    let object = std::fs::read(&path).unwrap();
    assert!(cairn_gateway::key::published::PublishedKeys::is_authentic(&object, &key));
    assert!(file::parse(&object, &Origin::File(path)).is_err());
}

#[test]
fn a_gateway_that_aborts_leaves_no_core() {
    let home = Home::ready();
    let program = env!("CARGO_BIN_EXE_cairn");
    // A process that is not dumpable is no longer its user's: what it dies of is told, and nothing dumped.
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -c unlimited 2>/dev/null; exec {program} serve")])
        .env("CAIRN_DIR", home.directory())
        .env_remove("CAIRN_ALLOW_CORE_DUMPS")
        .current_dir(home.folder())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let socket = home.path("admin.sock");
    for _ in 0..600 {
        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            break;
        }
        crate::support::pause(std::time::Duration::from_millis(50));
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::ABORT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(6));
    assert!(!status.core_dumped());
}
