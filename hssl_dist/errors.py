"""Every error the package raises on purpose.

HsslError
├── UsageError              the user can mend it: exit status 2
│   ├── ConfigError         a key, a value or a combination of values
│   ├── MissingError        a path, dataset, run or model that is not there
│   └── AccessError         storage that refuses the credentials, or has none to go by
├── InputError              a source file that cannot become a volume: quarantined
├── StorageError            object storage that fails or does not answer
├── StoreError              a store that is not what its manifest says
│   └── CorruptError        an object that is missing or has other bytes
├── CheckpointError         a checkpoint that cannot be loaded or does not fit
├── TrainingError           training that must not go on
│   ├── CollectiveError     ranks that wait for one that does not come
│   └── NonFiniteError      NaN or infinity in a loss or a gradient
├── WorkerError             a worker process, or its cluster, that was lost or did not start
├── OutOfMemoryError        memory, the machine's or the GPU's, does not suffice
├── BusyError               another process has what is one's alone
├── TooManyFailuresError    more cases failed than the config allows
└── TrackingError           the tracking server or the registry refused
Interrupted                 asked to stop, a checkpoint is saved: exit status 3
"""


class HsslError(Exception):
    """Base of all errors; `str()` is one line: what was found, what was expected, what to do.

    Line breaks of names in it are shown as spaces.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class UsageError(HsslError):
    """The caller can mend it: wrong flag, config or path."""


class ConfigError(UsageError):
    """A config key is unknown, a value out of range, or two values do not go together."""


class MissingError(UsageError):
    """Something the config names does not exist."""


class AccessError(UsageError):
    """Object storage refuses: wrong, missing or insufficient credentials."""


class StorageError(HsslError, OSError):
    """Object storage failed or did not answer, after all retries. It is an OSError: disks fail alike."""


class InputError(HsslError):
    """A source file cannot become a volume; the case is quarantined with this text as its reason."""


class StoreError(HsslError):
    """A store is not what its manifest says."""


class CorruptError(StoreError):
    """An object of the store is missing or its bytes differ from the recorded hash."""


class CheckpointError(HsslError):
    """A checkpoint is incomplete, corrupt, or does not fit the model or the config."""


class TrainingError(HsslError):
    """Training must not go on."""


class CollectiveError(TrainingError):
    """A collective failed because of another rank: it did not come by the deadline, or is gone."""


class NonFiniteError(TrainingError):
    """A loss or gradient became NaN or infinite."""


class WorkerError(HsslError):
    """A worker process crashed, was killed, or ran out of memory; or the cluster did, or did not start."""


class OutOfMemoryError(HsslError):
    """Memory, the machine's or the GPU's, does not suffice for what the config asks for."""


class BusyError(HsslError):
    """Another process has a folder that one process at a time may write."""


class TooManyFailuresError(HsslError):
    """More cases failed than `max_failure_rate` allows."""


class TrackingError(HsslError):
    """The tracking server or the model registry refused or could not be reached."""


class Interrupted(Exception):  # noqa: N818  (a request, not an error)
    """The run was asked to stop and has saved a checkpoint."""
