"""A verb in a process that may make no file larger than so many bytes: `below.py BYTES VERB [flags]`."""

import importlib
import resource
import sys

if __name__ == "__main__":
    limit_bytes, verb, *flags = sys.argv[1:]
    module = importlib.import_module(f"hssl_dist.{verb}")
    importlib.import_module(f"hssl_dist.jobs.{verb}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes), int(limit_bytes)))
    sys.exit(module.main(flags))
