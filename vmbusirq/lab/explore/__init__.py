"""All orders of a race: explored, judged, told, and played again."""
