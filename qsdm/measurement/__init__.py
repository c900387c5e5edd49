"""From a configuration to its outcome: drawing pictures, scoring them, storing what came out."""
