//! URLs of data nodes as users write them.

use cairn_segment_writer::{NodeUrl, PoolError};

/// Checks a data node's URL. The message of the error completes a sentence that begins with what the URL was given for.
pub fn check(url: &str) -> Result<(), String> {
    match NodeUrl::parse(url) {
        Ok(_) => Ok(()),
        Err(PoolError::InvalidUrl { reason, .. }) => Err(format!(
            "is no data node's URL: {reason}; write file:///PATH or s3://BUCKET/PREFIX?endpoint=URL&region=REGION"
        )),
        Err(error) => Err(format!("cannot be used: {error}")),
    }
}

/// The name a data node gets when it is only known by its URL: its bucket or folder.
pub fn default_name(url: &str) -> String {
    let place = url.split_once("://").map_or(url, |(_, rest)| rest);
    let place = place.split('?').next().unwrap_or(place);
    let part = if url.starts_with("s3://") {
        place.split('/').next()
    } else {
        place.rsplit('/').find(|part| !part.is_empty())
    };
    let name: String = part
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .take(63)
        .collect();
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) { name } else { "pool".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_url_is_not_repeated_where_it_may_hold_a_secret() {
        assert_eq!(check("s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=us-east-1"), Ok(()));
        let problem = check("s3://key:hush@bucket/prefix").unwrap_err();
        assert!(problem.contains("credentials") && !problem.contains("hush"), "{problem}");
    }

    #[test]
    fn a_node_is_named_after_its_place() {
        assert_eq!(default_name("s3://archive/prefix?endpoint=http://h"), "archive");
        assert_eq!(default_name("file:///srv/pool/"), "pool");
        assert_eq!(default_name("file:///srv/-"), "pool");
    }
}
