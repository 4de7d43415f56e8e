"""From what a user names (a path, a packaged file, a hub id) to files on this machine."""
