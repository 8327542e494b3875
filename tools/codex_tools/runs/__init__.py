"""What this server looks after: runs, their results and their traces."""
