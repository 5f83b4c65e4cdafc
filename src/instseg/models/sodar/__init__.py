"""SODAR: masks aggregated from what neighboring cells say."""
