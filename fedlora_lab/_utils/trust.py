"""The trust models of a federation: who adds the noise, and what everybody else then sees.

They stand here and not in `privacy`, whose import loads PyTorch: the help of the command line names
them, and is quick.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrustModel:
    """Whom the noise protects from.

    Args:
        uploads_are_seen: the server sees every upload, so each carries the whole noise alone; else
            it is their noised sum that is released.
        server_adds_noise: a trusted server adds the noise to the sum, once; else the clients do.
        observer: whom epsilon holds against, in a few words.
        view: what the server sees of the clients, in words.
        caveat: what a statement has to say beside epsilon; "": nothing.
    """

    uploads_are_seen: bool
    server_adds_noise: bool
    observer: str
    view: str
    caveat: str = ""

    @property
    def clients_share_noise(self) -> bool:
        """Whether the clients' noise together makes up that of the sum."""
        return not (self.uploads_are_seen or self.server_adds_noise)

    @property
    def hides_participants(self) -> bool:
        """Whether nobody whom epsilon holds against learns who takes part.

        Only then does the sampling of clients amplify: the uploads, and the noise of a sum to which
        each client adds a share, tell how many came.
        """
        return self.server_adds_noise


TRUST = {
    "local": TrustModel(
        uploads_are_seen=True,
        server_adds_noise=False,
        observer="whoever sees the uploads",
        view="every upload",
    ),
    "secagg": TrustModel(
        uploads_are_seen=False,
        server_adds_noise=False,
        observer="whoever sees the sums of the uploads",
        view="the sum of the uploads",
        caveat="Uploads must reach the server as one sum a round only; secure aggregation is not "
        "part of this package.",
    ),
    "central": TrustModel(
        uploads_are_seen=False,
        server_adds_noise=True,
        observer="whoever sees the released models only",
        view="every upload before its noise",
        caveat="The server sees every upload before its noise, and is trusted with them.",
    ),
}
"""Name -> trust model."""
