//! `migrate!` embeds files that cargo does not know to watch.

fn main() {
    println!("cargo:rerun-if-changed=../migrations/sqlite");
}
