//! What is watched, and what is asked of it.

/// Everything that a sample holds; the order is that of the columns and of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    Anonymous,
    Resident,
    Proportional,
    Caches,
    Threads,
    Descriptors,
    Store,
    Connections,
    Wal,
    Backlog,
    Catalog,
    Pool,
    Log,
    Cpu,
}

/// How a metric is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Its median must not be higher at the end than in the middle, but for so many percent.
    Flat { percent: f64 },
    /// Its lowest value must not be higher at the end than in the middle, but for so many: the load comes and goes and
    /// raises the top, a leak raises the floor.
    Floor { slack: f64 },
    /// A level that is shown.
    Level,
    /// Only ever grows: its speed is shown.
    Growing,
}

const MIB: f64 = 1_048_576.0;

impl Metric {
    pub(crate) const ALL: [Self; 14] = [
        Self::Anonymous,
        Self::Resident,
        Self::Proportional,
        Self::Caches,
        Self::Threads,
        Self::Descriptors,
        Self::Store,
        Self::Connections,
        Self::Wal,
        Self::Backlog,
        Self::Catalog,
        Self::Pool,
        Self::Log,
        Self::Cpu,
    ];

    /// The name of its column, unit last.
    pub(crate) fn column(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous_bytes",
            Self::Resident => "resident_bytes",
            Self::Proportional => "proportional_bytes",
            Self::Caches => "cache_bytes",
            Self::Threads => "threads",
            Self::Descriptors => "file_descriptors",
            Self::Store => "store_connections",
            Self::Connections => "nbd_connections",
            Self::Wal => "wal_used_bytes",
            Self::Backlog => "backlog_bytes",
            Self::Catalog => "catalog_bytes",
            Self::Pool => "pool_bytes",
            Self::Log => "server_log_bytes",
            Self::Cpu => "cpu_seconds",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Anonymous => "memory of its own (RssAnon), MiB",
            Self::Resident => "resident memory (RSS), MiB",
            Self::Proportional => "resident memory (PSS), MiB",
            Self::Caches => "what its caches hold, by its own account, MiB",
            Self::Threads => "threads",
            Self::Descriptors => "open files, but for the store",
            Self::Store => "connections to the store",
            Self::Connections => "NBD connections",
            Self::Wal => "log in use, MiB",
            Self::Backlog => "not in the pool yet, MiB",
            Self::Catalog => "catalog, MiB",
            Self::Pool => "pool, MiB",
            Self::Log => "the gateway's messages, MiB",
            Self::Cpu => "processor time, s",
        }
    }

    /// By how much a value is divided for people.
    pub(crate) fn scale(self) -> f64 {
        match self {
            Self::Threads | Self::Descriptors | Self::Store | Self::Connections | Self::Cpu => 1.0,
            _ => MIB,
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Anonymous => Kind::Flat { percent: 5.0 },
            // An hour sees thousands of connections: a leak in one of a thousand is more than this.
            Self::Threads | Self::Descriptors => Kind::Floor { slack: 4.0 },
            // The client keeps, for 90 s, as many as the busiest moment needed.
            Self::Store => Kind::Floor { slack: 64.0 },
            Self::Resident
            | Self::Proportional
            | Self::Caches
            | Self::Connections
            | Self::Wal
            | Self::Backlog => Kind::Level,
            Self::Catalog | Self::Pool | Self::Log | Self::Cpu => Kind::Growing,
        }
    }

    /// The shortest run, in seconds, that says something about it: caches and the allocator fill first.
    pub(crate) fn judged_from_seconds(self) -> f64 {
        if self == Self::Anonymous { 1800.0 } else { 0.0 }
    }
}
