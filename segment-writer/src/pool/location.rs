//! URLs of data nodes.

use crate::error::PoolError;
use std::fmt;
use std::path::PathBuf;
use url::Url;

/// Where a data node is, as the user wrote it and validated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeUrl {
    /// `file:///path`
    Directory(PathBuf),
    /// `s3://bucket/prefix?endpoint=http://…&region=…`
    S3(S3Url),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct S3Url {
    pub bucket: String,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
    /// `None`: AWS.
    pub endpoint: Option<String>,
    pub region: Option<String>,
}

/// What S3 clients sign with when nothing else is said; most servers take any.
pub(crate) const REGION_DEFAULT: &str = "us-east-1";

impl S3Url {
    pub(crate) fn region(&self) -> &str {
        self.region.as_deref().unwrap_or(REGION_DEFAULT)
    }
}

impl NodeUrl {
    pub fn parse(text: &str) -> Result<Self, PoolError> {
        let refuse = |reason: &str| PoolError::InvalidUrl { url: text.to_owned(), reason: reason.to_owned() };
        let url = Url::parse(text).map_err(|error| {
            refuse(&format!("not a URL ({error}); write file:///path or s3://bucket/prefix"))
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse(
                "credentials do not belong into the URL; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ));
        }
        match url.scheme() {
            "file" => {
                if url.query().is_some() {
                    return Err(refuse("a file URL takes no options"));
                }
                let path = url
                    .to_file_path()
                    .map_err(|()| refuse("a file URL has three slashes and an absolute path"))?;
                Ok(Self::Directory(path))
            }
            "s3" => parse_s3(&url, refuse).map(Self::S3),
            _ => Err(refuse("unknown scheme; write file:///path or s3://bucket/prefix")),
        }
    }
}

fn parse_s3(url: &Url, refuse: impl Fn(&str) -> PoolError) -> Result<S3Url, PoolError> {
    let bucket =
        url.host_str().filter(|bucket| !bucket.is_empty()).ok_or_else(|| refuse("the bucket is missing"))?;
    if url.port().is_some() {
        return Err(refuse(
            "the host of an s3 URL is the bucket; name the server with ?endpoint=http://host:port",
        ));
    }
    let mut parsed = S3Url {
        bucket: bucket.to_owned(),
        prefix: url.path().trim_matches('/').to_owned(),
        endpoint: None,
        region: None,
    };
    if !parsed.prefix.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)) {
        return Err(refuse("a prefix has letters, digits, '-', '_', '.' and '/' only"));
    }
    if parsed.prefix.split('/').any(|part| part == "." || part == "..") || parsed.prefix.contains("//") {
        return Err(refuse("a prefix has no empty, '.' or '..' parts"));
    }
    for (name, value) in url.query_pairs() {
        match &*name {
            "endpoint" => {
                let endpoint = Url::parse(&value).map_err(|_| refuse("the endpoint is not a URL"))?;
                if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
                    return Err(refuse("the endpoint begins with http:// or https:// and names a host"));
                }
                parsed.endpoint = Some(value.trim_end_matches('/').to_owned());
            }
            "region" => parsed.region = Some(value.into_owned()),
            _ => return Err(refuse("an s3 URL takes the options endpoint and region")),
        }
    }
    Ok(parsed)
}

impl fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => match Url::from_file_path(path) {
                Ok(url) => write!(f, "{url}"),
                Err(()) => write!(f, "file://{}", path.display()),
            },
            Self::S3(S3Url { bucket, prefix, endpoint, region }) => {
                write!(f, "s3://{bucket}")?;
                if !prefix.is_empty() {
                    write!(f, "/{prefix}")?;
                }
                let options = [("endpoint", endpoint), ("region", region)];
                let given =
                    options.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value)));
                for (number, (name, value)) in given.enumerate() {
                    write!(f, "{}{name}={value}", if number == 0 { '?' } else { '&' })?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_print_as_they_were_written() {
        for text in [
            "file:///var/lib/cairn/pool",
            "file:///with%20space",
            "s3://bucket",
            "s3://bucket/some/prefix?endpoint=http://127.0.0.1:7480",
            "s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-1",
            "s3://bucket?region=eu-central-1",
        ] {
            assert_eq!(NodeUrl::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_parts_of_an_s3_url_are_found() {
        let parsed = NodeUrl::parse("s3://b/p/q/?region=r&endpoint=http%3A%2F%2Fhost%3A1%2F").unwrap();
        let expected = S3Url {
            bucket: "b".into(),
            prefix: "p/q".into(),
            endpoint: Some("http://host:1".into()),
            region: Some("r".into()),
        };
        assert_eq!(parsed, NodeUrl::S3(expected));
    }

    #[test]
    fn urls_that_mean_nothing_are_refused_with_the_reason() {
        for (text, reason) in [
            ("/plain/path", "not a URL"),
            ("http://host/bucket", "unknown scheme"),
            ("file://host/path", "three slashes"),
            ("file:///path?x=y", "no options"),
            ("s3://", "bucket is missing"),
            ("s3://bucket:9000/prefix", "endpoint"),
            ("s3://key:secret@bucket/prefix", "credentials"),
            ("s3://bucket/?endpoint=ftp://host", "http://"),
            ("s3://bucket/?endpont=http://host", "options endpoint and region"),
            ("s3://bucket/a//b", "empty"),
            ("s3://bucket/a%20b", "letters"),
        ] {
            let error = NodeUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
