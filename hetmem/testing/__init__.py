"""The public test kit: what a policy, a device or an engine must satisfy, as checks to run on one's own.

* :func:`check_policy`, :func:`parametrize_with_checks`, :class:`Role`, :func:`register_role`: conformance of policies.
* :class:`DeviceUnderTest`: proves that something ends at a tick, not one earlier, not one later.
* :class:`ServingUnderTest`: the real decode loop on one server, for whatever decides who runs.
* :mod:`hetmem.testing.queueing`: what queueing theory says, exactly (Lindley, Little) or on average.
* :class:`ReferenceExecutor`: a second, independent engine of task graphs, and :class:`RandomLoops` to try it on.
"""

from hetmem.testing import mapping as _mapping  # noqa: F401 - registers its role
from hetmem.testing import parallelism as _parallelism  # noqa: F401 - registers its roles
from hetmem.testing.conformance import check_policy, checks_for, parametrize_with_checks
from hetmem.testing.device import DeviceUnderTest
from hetmem.testing.random_graphs import RandomLoops
from hetmem.testing.reference import ReferenceExecutor, drive
from hetmem.testing.role import Role, register_role, role_of, roles
from hetmem.testing.serving import ServingUnderTest

__all__ = [
    "DeviceUnderTest",
    "RandomLoops",
    "ReferenceExecutor",
    "Role",
    "ServingUnderTest",
    "check_policy",
    "checks_for",
    "drive",
    "parametrize_with_checks",
    "register_role",
    "role_of",
    "roles",
]
