"""Random faults on running jobs: whatever happens, a resumed run exports the bytes of an undisturbed one."""
