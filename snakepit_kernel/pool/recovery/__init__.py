"""What a pool does about failure: policies, and what they decide."""
