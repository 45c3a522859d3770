"""`sam local invoke` of the real functions in containers, against the one-machine stack."""

from darkroom.errors import DarkroomError


class CannotRunHere(DarkroomError):
    """This machine cannot run containers; the sentence says why, and the tests are skipped."""
