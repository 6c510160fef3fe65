//! The admin API: requests as an outsider would send them, to the whole router over a real engine in a temporary folder.
//!
//! What must hold: every request is answered, by JSON that the API's document allows, and no request is an internal error; a volume reads
//! as an array of bytes does after the same changes; what is inside a writable volume can be written; only loopback names are
//! this host.

mod api;
mod model;

use crate::Seeds;
use crate::input::Input;
pub(crate) use api::end;
use api::{Api, Asked, with_api};
use axum::http::Method;
use model::Model;
use serde_json::json;

const NAMES: [&str; 8] = ["a", "b", "c.1", ".bad", "", "%ff", "b%2Fc", "nobody"];
const SIZES: [u64; 8] = [512, 4096, 65_536, 1 << 20, 0, 513, 64 << 40, u64::MAX];
const METHODS: [Method; 7] =
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD, Method::OPTIONS];
const PATHS: [&str; 12] = [
    "/v1/status",
    "/v1/health",
    "/v1/volumes",
    "/v1/volumes/a",
    "/v1/volumes/a/data",
    "/v1/volumes/a/zeroes",
    "/v1/volumes/a/allocation",
    "/v1/volumes/a/flush",
    "/v1/nodes",
    "/v1/nodes/pool",
    "/v1/cpu",
    "/metrics",
];
const REQUESTS_MAX: usize = 16;

pub(crate) fn run(bytes: &[u8]) {
    with_api(|api| {
        let mut input = Input::new(bytes);
        let mut model = Model::default();
        for _ in 0..REQUESTS_MAX {
            if input.is_empty() {
                break;
            }
            step(api, &mut model, &mut input);
        }
        api.clear();
    });
}

fn step(api: &Api, model: &mut Model, input: &mut Input<'_>) {
    let kind = input.byte();
    let name = NAMES[usize::from(kind >> 4) % NAMES.len()];
    match kind & 15 {
        0 | 1 => {
            let (size_bytes, flags) = (input.one_of(&SIZES), input.byte());
            let read_only = flags & 0x0f == 0x0f;
            let durability = if flags & 0x10 == 0 { "flush" } else { "always" };
            let body = json!({"name": name, "size_bytes": size_bytes, "read_only": read_only, "durability": durability,
                "compress": flags & 0x20 == 0});
            let answer = api.ask(&Asked::json(Method::POST, "/v1/volumes", &body));
            model.created(name, size_bytes, read_only, answer.status);
        }
        2 => {
            let to = input.one_of(&NAMES);
            let size_bytes = input.one_of(&SIZES);
            let what = input.byte();
            let body = match what & 3 {
                0 => json!({"name": to}),
                1 => json!({"size_bytes": size_bytes, "force": what & 4 != 0}),
                2 => json!({"size_bytes": size_bytes, "name": to, "force": true}),
                _ => json!({}),
            };
            let answer = api.ask(&Asked::json(Method::PATCH, &format!("/v1/volumes/{name}"), &body));
            model.updated(name, &body, answer.status);
        }
        3..=9 => data(api, model, input, kind, name),
        10 => {
            let answer =
                api.ask(&Asked::new(Method::DELETE, &format!("/v1/volumes/{name}?force=true"), Vec::new()));
            model.deleted(name, answer.status);
        }
        11 => {
            let range = format!("offset={}&length={}", input.number::<u32>(), input.number::<u64>());
            api.ask(&Asked::new(Method::GET, &format!("/v1/volumes/{name}/allocation?{range}"), Vec::new()));
        }
        12 => {
            let paths =
                [format!("/v1/volumes/{name}/flush"), "/v1/destage".to_owned(), "/v1/nodes".to_owned()];
            let path = &paths[usize::from(input.below(3))];
            let body = json!({"name": name, "url": api.node_url(name), "create": false});
            api.ask(&Asked::json(Method::POST, path, &body));
        }
        _ => anything(api, model, input),
    }
}

/// Reads and writes of a volume's bytes.
fn data(api: &Api, model: &mut Model, input: &mut Input<'_>, kind: u8, name: &str) {
    match kind & 15 {
        3..=5 => {
            let offset = u64::from(input.number::<u16>());
            let (length, seed) = (usize::from(input.number::<u16>() & 0x3fff), input.byte());
            let bytes: Vec<u8> = (0..length).map(|at| seed.wrapping_add((at / 64) as u8)).collect();
            let path = format!("/v1/volumes/{name}/data?offset={offset}");
            let answer = api.ask(&Asked::new(Method::PUT, &path, bytes.clone()));
            model.written(name, offset, &bytes, answer.status);
        }
        6..=8 => {
            let (offset, length) = (u64::from(input.number::<u16>()), u64::from(input.number::<u16>()));
            let path = format!("/v1/volumes/{name}/data?offset={offset}&length={length}");
            let answer = api.ask(&Asked::new(Method::GET, &path, Vec::new()));
            model.read(name, offset, length, &answer);
        }
        _ => {
            let (offset, length) = (u64::from(input.number::<u16>()), input.number::<u32>() >> (kind & 0x10));
            let body = json!({"offset": offset, "length": length});
            let answer = api.ask(&Asked::json(Method::POST, &format!("/v1/volumes/{name}/zeroes"), &body));
            model.zeroed(name, offset, u64::from(length), answer.status);
        }
    }
}

/// Any method, path, kind and body, and any host.
fn anything(api: &Api, model: &mut Model, input: &mut Input<'_>) {
    let method = METHODS[usize::from(input.byte()) % METHODS.len()].clone();
    let mut path = input.one_of(&PATHS).to_owned();
    path.push_str(&String::from_utf8_lossy(input.string()));
    let kinds: [&[u8]; 4] = [b"application/json", b"text/plain", b"", b"application/octet-stream"];
    let kind = input.one_of(&kinds);
    let host = String::from_utf8_lossy(input.string()).into_owned();
    api::check_host(&host);
    let body = input.string().to_vec();
    let changes = !matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
    api.ask(&Asked { method, path, kind: kind.to_vec(), body });
    if changes {
        model.forget();
    }
}

pub(crate) fn seeds() -> Seeds {
    let create = [0x00, 2, 0];
    let put = [0x03, 0, 1, 0, 32, 7];
    let get = [0x06, 0, 0, 0, 64];
    let zeroes = [0x09, 0, 8, 0, 1, 0, 0];
    let cut = [0x02, 0, 1, 5];
    let grow = [0x02, 0, 2, 1];
    let rename = [0x02, 1, 0, 0];
    let delete = [0x1a];
    let flush = [0x0c, 0];
    let destage = [0x0c, 1];
    let tell = [0x0d, 0, 0, 0, 0, 0, 0];
    let all: [(&str, Vec<u8>); 7] = [
        ("life", [&create[..], &put, &get, &zeroes, &get, &flush, &rename, &delete].concat()),
        ("resized", [&create[..], &put, &cut, &grow, &get].concat()),
        ("destaged", [&create[..], &put, &destage, &get].concat()),
        ("read-only", [&[0x00, 2, 0x0f][..], &put, &get].concat()),
        ("told", [&create[..], &tell, &[0x0d, 0, 1, 0, 0, 0, 0]].concat()),
        ("strange-name", vec![0x50, 2, 0, 0x56, 0, 0, 0, 1, 0x5d, 0, 3, 4, b'/', b'%', b'f', b'f', 0, 0, 0]),
        (
            "host",
            [&[0x0d, 0, 0, 0, 0, 9][..], b"localhost", &[0, 0x0d, 0, 0, 0, 0, 9], b"[::1]:808", &[0]]
                .concat(),
        ),
    ];
    all.map(|(name, bytes)| (name.to_owned(), bytes)).into()
}
