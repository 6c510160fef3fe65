//! An object store that takes its time, below the faults.

use async_trait::async_trait;
use cairn_model::Clock;
use cairn_wal::testing::Dice;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Delays requests by up to a few milliseconds of virtual time, so that uploads overlap and overtake each other.
pub(crate) struct SlowStore {
    inner: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    dice: Dice,
}

impl SlowStore {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, clock: Arc<dyn Clock>, dice: Dice) -> Self {
        Self { inner, clock, dice }
    }

    async fn pause(&self) {
        let micros = if self.dice.percent(10) { self.dice.below(200_000) } else { self.dice.below(5000) };
        self.clock.sleep(Duration::from_micros(micros)).await;
    }
}

#[async_trait]
impl ObjectStore for SlowStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.pause().await;
        let result = self.inner.put_opts(key, payload, options).await;
        self.pause().await;
        result
    }

    async fn put_multipart_opts(
        &self,
        key: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        self.pause().await;
        self.inner.get_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl fmt::Debug for SlowStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlowStore")
    }
}

impl fmt::Display for SlowStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, slowly", self.inner)
    }
}
