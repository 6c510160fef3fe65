//! What a store's error means.
//!
//! `object_store` keeps the HTTP status of most errors to itself; its text has it ("status code: 503 …"), with the
//! server's XML behind. The tests pin that text against a real HTTP server.

use crate::error::{Action, PoolError};
use object_store::Error as StoreError;
use std::error::Error as _;
use std::io;
use std::sync::Arc;

/// Longest cause kept for messages, in bytes.
const CAUSE_BYTES_MAX: usize = 300;

/// A failed attempt, judged.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: PoolError,
    /// Worth repeating at once (after a pause): it passes by itself.
    pub(crate) transient: bool,
}

/// What there is to do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Transient,
    AccessDenied,
    NoSuchBucket,
    NoSuchObject,
    OutOfSpace,
    ReadOnly,
    /// The object ends before the range does.
    Short,
    Rejected,
}

/// Judges `error` of `action` on `node`.
pub(crate) fn classify(node: &Arc<str>, action: Action, error: StoreError) -> Failure {
    let text = error.to_string();
    let class = match class_of(&error, &text) {
        // Only a get asks for an object that must exist.
        Class::NoSuchObject if action.verb != "get" => Class::NoSuchBucket,
        class => class,
    };
    let cause = cause_of(&error, &text);
    failure(node, action, class, cause, error)
}

/// The failure of a class.
pub(crate) fn failure(
    node: &Arc<str>,
    action: Action,
    class: Class,
    cause: String,
    error: StoreError,
) -> Failure {
    let node = Arc::clone(node);
    let source = Some(Arc::new(error));
    let error = match class {
        Class::Transient => PoolError::Unavailable { node, action, cause, source },
        Class::AccessDenied => PoolError::AccessDenied { node, action, cause, source },
        Class::NoSuchBucket => PoolError::NoSuchBucket { node, action, cause, source },
        Class::NoSuchObject => PoolError::NotFound { node, key: action.key },
        Class::OutOfSpace => PoolError::OutOfSpace { node, action, cause, source },
        Class::ReadOnly => PoolError::ReadOnly { node, action, cause, source },
        Class::Short => too_short(node, action.key),
        Class::Rejected => PoolError::Rejected { node, action, cause, source },
    };
    Failure { error, transient: class == Class::Transient }
}

pub(crate) fn too_short(node: Arc<str>, key: String) -> PoolError {
    PoolError::Corrupt {
        node,
        key,
        part: "the object".to_owned(),
        reason: "it is shorter than the catalog says".to_owned(),
    }
}

fn class_of(error: &StoreError, text: &str) -> Class {
    if let Some(io) = find::<io::Error>(error) {
        return class_of_io(error, io);
    }
    if let Some(class) = between(text, "<Code>", "</Code>").and_then(class_of_code) {
        return class;
    }
    match error {
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => Class::AccessDenied,
        StoreError::NotFound { .. } => Class::NoSuchObject,
        StoreError::Generic { .. } => match status_of(text) {
            Some(status) => class_of_status(status),
            // A range that begins behind the end, found before it was asked for.
            None if text.contains("Wanted range starting at") => Class::Short,
            // The connection: refused, reset, cut in the middle of the body. Or an answer that makes no sense, as of a proxy
            // or a server that is starting.
            None => Class::Transient,
        },
        _ => Class::Rejected,
    }
}

/// What an S3 error code means where the status says less.
pub(crate) fn class_of_code(code: &str) -> Option<Class> {
    match code {
        "NoSuchBucket" => Some(Class::NoSuchBucket),
        "NoSuchKey" => Some(Class::NoSuchObject),
        "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded" | "InsufficientStorage" => {
            Some(Class::OutOfSpace)
        }
        "SlowDown" | "InternalError" | "ServiceUnavailable" | "RequestTimeout" => Some(Class::Transient),
        "InvalidRange" => Some(Class::Short),
        _ => None,
    }
}

pub(crate) fn class_of_status(status: u16) -> Class {
    match status {
        401 | 403 => Class::AccessDenied,
        404 => Class::NoSuchObject,
        416 => Class::Short,
        507 => Class::OutOfSpace,
        408 | 409 | 425 | 429 | 500.. => Class::Transient,
        _ => Class::Rejected,
    }
}

fn status_of(text: &str) -> Option<u16> {
    text.split("status code: ").nth(1).and_then(|rest| rest.get(..3)?.parse().ok())
}

fn class_of_io(error: &StoreError, io: &io::Error) -> Class {
    use io::ErrorKind as Io;
    match io.kind() {
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Class::OutOfSpace,
        Io::ReadOnlyFilesystem => Class::ReadOnly,
        Io::PermissionDenied => Class::AccessDenied,
        Io::NotFound if matches!(error, StoreError::NotFound { .. }) => Class::NoSuchObject,
        Io::NotFound | Io::NotADirectory => Class::NoSuchBucket,
        _ => Class::Transient,
    }
}

/// The first error of that type among `error` and its sources.
fn find<E: std::error::Error + 'static>(error: &StoreError) -> Option<&E> {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(found) = source.downcast_ref::<E>() {
            return Some(found);
        }
        next = source.source();
    }
    None
}

/// One line for people: the server's code and message, the system's error, or the deepest source's text.
fn cause_of(error: &StoreError, text: &str) -> String {
    let status = text.split("status code: ").nth(1).and_then(|rest| rest.split(": ").next());
    let cause = match (status, between(text, "<Code>", "</Code>"), between(text, "<Message>", "</Message>")) {
        (Some(status), Some(code), Some(message)) if !message.is_empty() => {
            format!("{status}, {code}: {message}")
        }
        (Some(status), Some(code), _) => format!("{status}, {code}"),
        (Some(status), None, _) => status.to_owned(),
        (None, ..) => {
            let mut deepest: &dyn std::error::Error = error;
            while let Some(source) = deepest.source() {
                deepest = source;
            }
            deepest.to_string()
        }
    };
    let line: String = cause.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = (0..=CAUSE_BYTES_MAX.min(line.len())).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
    line[..end].to_owned()
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let start = text.find(open)? + open.len();
    let length = text[start..].find(close)?;
    Some(&text[start..start + length])
}
